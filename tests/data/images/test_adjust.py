"""Pixel adjustments, compared with float computations in NumPy."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.images import adjust

LUMA = np.array([0.299, 0.587, 0.114])
GREEN = (0, 200, 0)


def noise(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(height: int = 40, width: int = 60) -> Image.Image:
    """Gradients, of which bilinear samples hardly depend on how weights are rounded."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([4 * x, 6 * y, 2 * x + 3 * y], axis=-1).astype(np.uint8))


def floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def assert_within(image: Image.Image, exact: np.ndarray, tolerance: float) -> None:
    assert image.mode == "RGB"
    np.testing.assert_allclose(floats(image), np.clip(exact, 0, 255), rtol=0, atol=tolerance)


@pytest.mark.parametrize("factor", [0, 0.37, 1, 1.6, 3])
def test_brightness_multiplies_values(factor):
    assert_within(adjust.brightness(noise(), factor), factor * floats(noise()), 0.5)


@pytest.mark.parametrize("factor", [0, 0.37, 1, 1.6, 3])
def test_contrast_multiplies_differences_from_the_mean_luma(factor):
    pixels = floats(noise())
    mean = (pixels @ LUMA).mean()
    # The mean is one of lumas that were rounded before.
    assert_within(adjust.contrast(noise(), factor), mean + factor * (pixels - mean), 0.5 + 0.5 * abs(1 - factor))


@pytest.mark.parametrize("factor", [0, 0.37, 1, 1.6, 3])
def test_saturation_multiplies_differences_from_the_luma(factor):
    pixels = floats(noise())
    luma = (pixels @ LUMA)[..., None]
    assert_within(adjust.saturation(noise(), factor), luma + factor * (pixels - luma), 0.5 + 1e-3)


def test_gray_is_the_luma_in_every_channel():
    luma = np.repeat((floats(noise()) @ LUMA)[..., None], 3, axis=-1)
    assert_within(adjust.gray(noise()), luma, 0.5 + 1e-2)  # Pillow's weights have 16 bits


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.02, 0.1, 1 / 3, 0.5])
def test_hue_turns_the_color_circle(turn):
    pixels = floats(noise()) / 255
    exact = np.empty_like(pixels)
    for place in np.ndindex(pixels.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place])
        exact[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    # A color changes by 6 levels from one of the 255 hues to the next; a hue is cut off, the turn rounded: 9 levels.
    # One of saturation and the last rounding are one each.
    assert_within(adjust.hue(noise(), turn), 255 * exact, 11 if turn else 1e-9)


def test_a_third_of_the_circle_takes_red_to_green_and_green_to_blue():
    primaries = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8))
    turned = np.asarray(adjust.hue(primaries, 1 / 3))
    assert turned.tolist() == [[[0, 255, 0], [0, 0, 255], [255, 0, 0], [9, 9, 9]]]


@pytest.mark.parametrize("factor", [0, 0.37, 1, 1.6, 3])
def test_sharpness_multiplies_differences_from_a_smoothed_image(factor):
    pixels = floats(noise())
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    height, width = pixels.shape[:2]
    around = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    smoothed = (around + 4 * pixels) / 13
    exact = smoothed + factor * (pixels - smoothed)
    exact[[0, -1]], exact[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]
    # The smoothed image is rounded, and the result cut off.
    assert_within(adjust.sharpness(noise(), factor), exact, 1 + 0.5 * abs(1 - factor))


def exact_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    radius = math.ceil(8 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    rows = sum(weight * padded[i : i + pixels.shape[0]] for i, weight in enumerate(kernel))
    return sum(weight * rows[:, i : i + pixels.shape[1]] for i, weight in enumerate(kernel))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0])
@pytest.mark.parametrize("image", [noise, smooth])
def test_a_blur_is_within_two_levels_of_the_exact_gaussian(image, sigma):
    blurred, exact = adjust.blur(image(), sigma), exact_blur(floats(image()), sigma)
    assert_within(blurred, exact, 2)
    # Rounding twice costs 0.3 levels in the mean; a bias, as of cutting off, would cost half a level and more.
    assert abs((floats(blurred) - exact).mean()) < 0.1


@pytest.mark.parametrize("sigma", [0.1, 1.3, 3.0, 40.0])
@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_a_blur_leaves_an_even_image_as_it_is(level, sigma):
    even = Image.new("RGB", (30, 20), (level, 0, 255))
    assert adjust.blur(even, sigma).tobytes() == even.tobytes()


def exact_affine(pixels: np.ndarray, angle: float, scale: float, shift: tuple[float, float], fill) -> np.ndarray:
    """Composed of matrices, inverted, and sampled with numpy; angle counter-clockwise with y pointing down."""
    height, width = pixels.shape[:2]

    def move(x: float, y: float) -> np.ndarray:
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    forward = move(*shift) @ move(width / 2, height / 2) @ turn @ np.diag([scale, scale, 1])
    backward = np.linalg.inv(forward @ move(-width / 2, -height / 2))
    result = np.empty_like(pixels)
    for y, x in np.ndindex(height, width):
        from_x, from_y, _ = backward @ [x + 0.5, y + 0.5, 1]
        if not (0 <= from_x < width and 0 <= from_y < height):
            result[y, x] = fill
            continue
        left, top = math.floor(from_x - 0.5), math.floor(from_y - 0.5)
        right_share, down_share = from_x - 0.5 - left, from_y - 0.5 - top
        xs, ys = np.clip([left, left + 1], 0, width - 1), np.clip([top, top + 1], 0, height - 1)
        corners = pixels[np.ix_(ys, xs)]
        result[y, x] = np.einsum("yxc,y,x->c", corners, [1 - down_share, down_share], [1 - right_share, right_share])
    return result


@pytest.mark.parametrize(
    ("angle", "scale", "shift"),
    [(0.0, 1.0, (0, 0)), (0.3, 1.0, (0, 0)), (0.0, 1.3, (0, 0)), (0.0, 1.0, (3.3, -5.2)), (-0.2, 0.9, (4.7, 2.6))],
)
def test_affine_turns_scales_and_shifts(angle, scale, shift):
    exact = exact_affine(floats(smooth()), angle, scale, shift, GREEN)
    assert_within(adjust.affine(smooth(), angle, scale, shift, GREEN), exact, 1)


def test_an_angle_is_counter_clockwise():
    square = noise(31, 31)
    turned = adjust.affine(square, math.pi / 2, 1, (0, 0), GREEN)
    # Of the outermost pixels, rounding decides whether they come from inside; and Pillow cuts samples off.
    np.testing.assert_allclose(floats(turned)[1:-1, 1:-1], np.rot90(floats(square))[1:-1, 1:-1], rtol=0, atol=1)


def test_a_shear_moves_each_row_or_column_further_than_the_last():
    pixels, (width, height) = floats(smooth()), smooth().size
    sheared = floats(adjust.shear(smooth(), 0.25, 0, GREEN))
    upright = floats(adjust.shear(smooth(), 0, -0.25, GREEN))
    for channel in range(3):
        for y in range(height):
            from_x = np.arange(width) + 0.25 * (y + 0.5)
            inside = from_x + 0.5 < width
            exact = np.interp(from_x, np.arange(width), pixels[y, :, channel])
            np.testing.assert_allclose(sheared[y, inside, channel], exact[inside], atol=1)
            assert (sheared[y, ~inside, channel] == GREEN[channel]).all()
        for x in range(width):
            from_y = np.arange(height) - 0.25 * (x + 0.5)
            inside = from_y + 0.5 > 0
            exact = np.interp(from_y, np.arange(height), pixels[:, x, channel])
            np.testing.assert_allclose(upright[inside, x, channel], exact[inside], atol=1)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (7, 0), (-7, 3), (0, -100)])
def test_a_shift_moves_whole_pixels(right, down):
    pixels = np.asarray(noise())
    shifted = np.asarray(adjust.shift(noise(), right, down, GREEN))
    for y, x in np.ndindex(pixels.shape[:2]):
        inside = 0 <= y - down < pixels.shape[0] and 0 <= x - right < pixels.shape[1]
        assert tuple(shifted[y, x]) == (tuple(pixels[y - down, x - right]) if inside else GREEN)
