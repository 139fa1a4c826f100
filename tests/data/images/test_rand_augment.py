"""RandAugment: the operations, their frequencies and their strengths."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.images import adjust, augment
from jaxclip.data.images.augment import OPERATIONS, RandAugment

GRAY = (128, 128, 128)
BY_NAME = {operation.__name__: operation for operation in OPERATIONS}


def random_image(low: int = 0, high: int = 256, size: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high, (size, size, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = low, high - 1
    return Image.fromarray(pixels)


def pixels_after(name: str, magnitude: int, image: Image.Image | None = None) -> np.ndarray:
    return np.asarray(BY_NAME[name](image or random_image(), magnitude)).astype(float)


def test_the_operations_are_those_of_albef_and_none_is_of_color():
    assert set(BY_NAME) == {
        "identity",
        "autocontrast",
        "equalize",
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "rotate",
    }
    assert len(OPERATIONS) == 10


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("magnitude", [-7, 7])
def test_an_operation_brings_no_color_into_a_gray_image(name, magnitude):
    result = pixels_after(name, magnitude, adjust.gray(random_image()))
    assert result.shape == (40, 40, 3)
    assert (result == result[..., :1]).all()


def test_each_operation_is_drawn_as_often_carried_out_with_p_and_goes_to_either_side(monkeypatch):
    drawn: list[tuple[int, int]] = []

    def noting(which: int):
        return lambda image, magnitude: drawn.append((which, magnitude)) or OPERATIONS[which](image, magnitude)

    monkeypatch.setattr(augment, "OPERATIONS", tuple(map(noting, range(10))))
    image, rng = random_image(size=4), np.random.default_rng(0)
    for _ in range(4000):
        RandAugment(2, 7, p=0.5)(image, rng)
    # Of 8000 draws half are carried out; a twentieth of those is of one operation to one side. Binomial counts of mean
    # 4000 and 200, and deviation 45 and 14; bounds of five deviations.
    counts = collections.Counter(drawn)
    assert abs(len(drawn) - 4000) < 225
    assert set(counts) == {(which, side) for which in range(10) for side in (-7, 7)}
    assert all(abs(count - 200) < 70 for count in counts.values())


def test_one_operation_may_be_drawn_twice():
    image, rng = Image.new("RGB", (40, 40)), np.random.default_rng(0)
    moved_twice = BY_NAME["translate_x"](BY_NAME["translate_x"](image, -10), -10).tobytes()
    # One draw of 400 is of a translation to the left twice, so 2000 miss it with a probability of 0.7 %.
    assert any(RandAugment(2, 10, 1.0)(image, rng).tobytes() == moved_twice for _ in range(2000))


@pytest.mark.parametrize("magnitude", [-10, -7, 3, 10])
def test_a_translation_is_of_as_many_pixels_as_the_magnitude(magnitude):
    moved = np.full((60, 60, 3), 128.0)
    moved[10 : 10 + 40, 10 + magnitude : 50 + magnitude] = np.asarray(random_image())
    assert np.array_equal(pixels_after("translate_x", magnitude), moved[10:50, 10:50])
    upright = random_image().transpose(Image.Transpose.TRANSPOSE)
    assert np.array_equal(pixels_after("translate_y", magnitude, upright), moved[10:50, 10:50].swapaxes(0, 1))


@pytest.mark.parametrize("magnitude", [-10, 7])
def test_a_rotation_is_of_three_degrees_a_step(magnitude):
    expected = adjust.affine(random_image(), math.radians(3 * magnitude), 1, (0, 0), GRAY)
    assert np.array_equal(pixels_after("rotate", magnitude), expected)


@pytest.mark.parametrize("magnitude", [-10, 7])
def test_a_shear_is_of_three_hundredths_a_step(magnitude):
    assert np.array_equal(pixels_after("shear_x", magnitude), adjust.shear(random_image(), 0.03 * magnitude, 0, GRAY))
    assert np.array_equal(pixels_after("shear_y", magnitude), adjust.shear(random_image(), 0, 0.03 * magnitude, GRAY))


@pytest.mark.parametrize(("magnitude", "factor"), [(0, 0.1), (5, 1.0), (7, 1.36), (-7, 1.36), (10, 1.9)])
def test_brightness_and_sharpness_go_from_a_tenth_to_almost_twice(magnitude, factor):
    exact = np.clip(np.asarray(random_image()) * factor, 0, 255)
    np.testing.assert_allclose(pixels_after("brightness", magnitude), exact, rtol=0, atol=0.5 + 1e-9)
    assert np.array_equal(pixels_after("sharpness", magnitude), adjust.sharpness(random_image(), factor))


def test_autocontrast_spreads_values_over_the_whole_range():
    dim = random_image(100, 151)
    exact = (np.asarray(dim).astype(float) - 100) * 255 / 50
    np.testing.assert_allclose(pixels_after("autocontrast", 7, dim), exact, rtol=0, atol=1)


def test_equalize_makes_every_value_about_as_frequent():
    dark = Image.fromarray((np.asarray(random_image(size=100)).astype(float) ** 3 / 255**2).astype(np.uint8))
    for channel in pixels_after("equalize", 7, dark).T:
        quarters, _ = np.histogram(channel, bins=4, range=(0, 256))
        assert all(2000 < count < 3000 for count in quarters)
    assert np.histogram(np.asarray(dark), bins=4, range=(0, 256))[0][0] > 15_000
