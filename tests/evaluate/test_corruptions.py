"""Corruptions of images compared with independent definitions."""

from __future__ import annotations

import colorsys
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from look_up import mesh_of
from PIL import Image

from jaxclip import sharding
from jaxclip.evaluate.corruptions import KINDS, STRENGTHS, blur, corrupted, digital, draws, resampling, weather

SIZE, COUNT = 32, 16  # of the images; all have one shape, so that each kind is compiled once for a number of devices
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"}
RANDOM |= {"elastic_transform"}


def textured(count: int, size: int = SIZE) -> np.ndarray:
    """Smooth colors with fine grain, uint8."""
    rng = np.random.default_rng(0)
    grain, smooth = rng.normal(size=(2, count, size, size, 3))
    smooth = scipy.ndimage.gaussian_filter(smooth, (0, 3, 3, 0))
    return np.clip(110 + 40 * smooth / smooth.std() + 20 * grain, 0, 255).astype(np.uint8)


def corrupt(images: np.ndarray, seeds, kind: str, strength: int, devices: int = 1) -> np.ndarray:
    mesh = mesh_of(devices)
    placed = [jax.device_put(array, sharding.batch_sharding(mesh)) for array in (images, np.array(seeds, np.int32))]
    return np.asarray(corrupted(mesh, *placed, kind, strength))


@functools.cache
def versions(kind: str, strength: int) -> np.ndarray:
    """`textured` images, with seeds from 0, and at the end the first 5 of them with the same seeds again."""
    images, seeds = textured(11), np.arange(11)
    return corrupt(np.concatenate([images, images[:5]]), [*seeds, *seeds[:5]], kind, strength)


plasma = jax.jit(weather.plasma, static_argnums=1)
displaced = jax.jit(digital.displaced, static_argnums=0)


def given(*parameters) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(parameter, jnp.float32) for parameter in parameters)


def distance(images: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(images.astype(float) - others).mean())


def one(kind: str, strength: int, image: np.ndarray) -> np.ndarray:
    """An image of 32 pixels corrupted, through the program of `versions`."""
    return corrupt(np.broadcast_to(image, (COUNT, *image.shape)), np.arange(COUNT), kind, strength)


@pytest.mark.parametrize("kind", KINDS)
def test_a_strong_corruption_is_further_from_the_image_than_a_weak_one(kind):
    images = textured(11)
    weak, strong = versions(kind, 1)[:11], versions(kind, STRENGTHS)[:11]
    assert weak.shape == images.shape and weak.dtype == np.uint8
    assert distance(weak, images) > 0.1
    # As published, the weakest elastic transform moves the whole image far and the strongest each part a little.
    if kind != "elastic_transform":
        assert distance(strong, images) > distance(weak, images)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_by_its_seed_alone(kind):
    """Wherever it lies in a batch, whatever lies beside it, and however many devices there are."""
    found = versions(kind, 3)
    np.testing.assert_array_equal(found[11:], found[:5])
    order = np.random.default_rng(1).permutation(11)[:8]
    np.testing.assert_array_equal(corrupt(textured(11)[order], order, kind, 3, devices=8), found[order])
    other = corrupt(np.concatenate([textured(11), textured(5)]), np.arange(100, 100 + COUNT), kind, 3)
    assert (distance(other[:11], found[:11]) > 0) == (kind in RANDOM)


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_noise_has_its_distribution(strength):
    """Of a gray image; the published figures are for 224 pixels, and of 32 they are those of a root of 1/7."""
    root, gray = (SIZE / 224) ** 0.5, np.full((SIZE, SIZE, 3), 128, np.uint8)
    count = COUNT * gray.size
    noisy = one("gaussian_noise", strength, gray) / 255 - 128 / 255
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[strength - 1] * root
    # Five standard errors; at these strengths next to nothing is clipped.
    assert abs(noisy.mean()) < 5 * deviation / count**0.5
    assert noisy.std() == pytest.approx(deviation, rel=5 / (2 * count) ** 0.5 + 0.002)

    photons = (60, 25, 12, 5, 3)[strength - 1] * 7
    counts = np.rint(one("shot_noise", strength, gray) / 255 * photons).astype(int)
    rate = photons * 128 / 255
    # At many photons a level of the 8-bit image stands for several counts, which neither moment feels.
    assert abs(counts.mean() - rate) < 5 * (rate / count) ** 0.5 + 0.02
    assert counts.std() == pytest.approx(rate**0.5, rel=5 / (2 * count) ** 0.5 + 0.01)

    values = one("impulse_noise", strength, gray)
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[strength - 1] * root
    for extreme in (0, 255):
        assert abs((values == extreme).mean() - share / 2) < 5 * (share / 2 / count) ** 0.5
    assert set(np.unique(values)) == {0, 128, 255}


def test_photons_have_a_poisson_distribution():
    """At 21 photons for white, each count has a level of its own."""
    counts = np.rint(one("shot_noise", 5, np.full((SIZE, SIZE, 3), 64, np.uint8)) / 255 * 21).astype(int)
    expected = scipy.stats.poisson.pmf(np.arange(16), 21 * 64 / 255) * counts.size
    found = np.bincount(counts.ravel(), minlength=16)[:16]
    assert (abs(found - expected) < 5 * expected**0.5 + 1).all()


def test_random_numbers_are_uniform_and_unrelated_between_keys():
    keys = [draws.key(jnp.int32(seed)) for seed in (0, 1, 2, 2**31 - 1)]
    rows = np.stack([draws.uniform(draws.fold(key, number), (20_000,)) for key in keys for number in (0, 1)])
    assert rows.min() > 0 and rows.max() < 1
    for row in rows:
        assert scipy.stats.kstest(row, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 5 / 20_000**0.5
    assert abs(np.corrcoef(rows[0, :-1], rows[0, 1:])[0, 1]) < 5 / 20_000**0.5
    numbers = np.asarray(draws.normal(keys[0], (20_000,)))
    assert scipy.stats.kstest(numbers, "norm").pvalue > 1e-4


@pytest.mark.parametrize("size", [SIZE, 224])
def test_defocus_is_a_convolution_with_a_disk(size):
    (disk,) = blur.defocus_blur_parameters(5, size)
    assert disk.sum() == pytest.approx(1, abs=1e-6)
    # The moment of inertia of a disk of that radius, and of the Gaussian that blurs its edge.
    radius, edge = 10 * size / 224, 0.5 * size / 224
    places = np.arange(len(disk)) - len(disk) // 2
    # What lies between two pixels is divided among them, which adds 1/6 in either direction.
    moment = (disk * (np.square(places)[:, None] + np.square(places))).sum()
    assert moment == pytest.approx(radius**2 / 2 + 2 * edge**2 + 1 / 3, rel=0.02)
    if size == SIZE:
        image = textured(1)[0]
        expected = scipy.ndimage.convolve(image.astype(float), disk[..., None], mode="mirror")
        # One level for rounding.
        assert abs(one("defocus_blur", 5, image)[0] - expected).max() <= 0.51


def test_a_motion_is_a_trail_whose_weights_sum_to_one():
    """A dot becomes half a Gaussian at the given angle."""
    size, angle = 64, jnp.float32(0.4)
    dot = np.zeros((size, size, 1), np.float32)
    dot[40, 40] = 1
    parameters = given(*blur.smear_parameters(20.0, 15.0, 20.0, 112))
    trail = np.asarray(blur.smeared(jnp.asarray(dot), angle, *parameters))[..., 0]
    assert trail.sum() == pytest.approx(1, abs=1e-5)
    columns = np.nonzero(trail)[1]
    assert columns.max() == 40 and columns.min() == 40 - np.ceil(20 * np.cos(angle))
    back = 40 - np.arange(size)
    for column in range(columns.min(), 41):
        here = trail[:, column] / trail[:, column].sum()
        assert (here * back).sum() == pytest.approx(back[column] * np.tan(angle), abs=1e-3)
    # The mean of half a Gaussian of 7.5 pixels that is cut at 20.
    expected = scipy.stats.truncnorm(0, 20 / 7.5, scale=7.5).mean()
    assert trail.sum(axis=0) @ back / np.cos(angle) == pytest.approx(expected, rel=1e-3)
    flat = np.full((16, 16, 1), 0.3, np.float32)
    np.testing.assert_allclose(blur.smeared(jnp.asarray(flat), angle, *parameters), flat, rtol=1e-6)


def test_a_zoom_blur_is_the_mean_of_enlargements():
    image = textured(1)[0].astype(float)
    center = (SIZE - 1) / 2
    zooms = [image]
    for factor in 1 + 0.03 * np.arange(11):
        scale = [1 / factor, 1 / factor, 1]
        offset = [center - center / factor, center - center / factor, 0]
        zooms.append(scipy.ndimage.affine_transform(image, scale, offset, order=1))
    assert abs(one("zoom_blur", 5, image.astype(np.uint8))[0] - np.mean(zooms, axis=0)).max() <= 0.51


def test_glass_moves_colors_no_further_than_it_says():
    """Without the blur, at the published size: at strength 5 twice by at most 4 pixels."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None], (64, 64, 3))
    _, displacements = blur.glass_blur_parameters(5, 224)
    assert displacements.tolist() == [4, 4, 0]
    still, displacements = given(np.eye(64), displacements)
    moved = np.asarray(blur.glass_blur(jnp.asarray(ramp), draws.key(jnp.int32(0)), still, displacements))
    offsets = np.rint(moved - ramp)[8:-8]
    assert offsets.min() >= -8 and offsets.max() <= 8
    # Twice the variance of a uniform number rounded at random: 4² / 3, and 1/6 on average for the rounding.
    assert offsets[..., 0].var() == pytest.approx(2 * (16 / 3 + 1 / 6), rel=0.05)


def test_brightness_is_added_to_the_value():
    image = textured(1)[0]
    image[0, 0] = 0
    expected = np.empty(image.shape)
    for place in np.ndindex(SIZE, SIZE):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
    assert abs(one("brightness", 3, image)[0] - 255 * expected).max() <= 0.51


def test_contrast_is_drawn_to_the_mean_of_each_channel():
    image = textured(1)[0].astype(float)
    means = image.mean(axis=(0, 1))
    expected = means + 0.1 * (image - means)
    assert abs(one("contrast", 4, image.astype(np.uint8))[0] - expected).max() <= 0.51


def test_fog_keeps_the_greatest_value_and_adds_a_fractal():
    drift = np.asarray(plasma(draws.key(jnp.int32(5)), SIZE, jnp.float32(2)))
    assert (drift.min(), drift.max()) == (0, 1)
    # Smooth: neighbors are closer than far points, the more so for a greater decay.
    rough = np.asarray(plasma(draws.key(jnp.int32(5)), SIZE, jnp.float32(1.2)))
    assert abs(np.diff(drift)).mean() < abs(np.diff(rough)).mean() / 2
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    foggy = one("fog", 1, white)[0] / 255
    drift = np.asarray(plasma(draws.fold(draws.key(jnp.int32(0)), KINDS.index("fog")), SIZE, jnp.float32(2)))
    assert abs(foggy - (1 + 1.5 * drift[..., None]) / 2.5).max() <= 0.51 / 255


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_pixelation_is_that_of_pils_box_filter(strength):
    """At the published size, and at 32 pixels with blocks that exceed a pixel by a seventh as much."""
    published = (0.6, 0.5, 0.4, 0.3, 0.25)[strength - 1]
    for size, side in {224: 224 * published, SIZE: SIZE / (1 + (1 / published - 1) / 7) + 1e-6}.items():
        image = textured(1, size)[0]
        small = Image.fromarray(image).resize((int(side), int(side)), Image.Resampling.BOX)
        expected = np.asarray(small.resize((size, size), Image.Resampling.BOX)).astype(float)
        found = np.asarray(resampling.applied(*given(*digital.pixelate_parameters(strength, size), image)))
        # PIL rounds to levels after the rows, and after the columns.
        assert abs(found - expected).max() <= 1.01


@pytest.mark.parametrize(("size", "qualities"), [(224, (25, 18, 15, 10, 7)), (SIZE, (86, 80, 76, 64, 49))])
def test_jpeg_is_pils(size, qualities):
    """At 32 pixels the quantization is a seventh: libjpeg's factor is 5000 / quality, from 50 on 200 - 2 quality."""
    assert tuple(digital.jpeg_quality(strength, size) for strength in range(1, STRENGTHS + 1)) == qualities
    if size == SIZE:
        file = io.BytesIO()
        Image.fromarray(textured(11)[2]).save(file, "JPEG", quality=qualities[2])
        np.testing.assert_array_equal(versions("jpeg_compression", 3)[2], np.asarray(Image.open(file)))


@pytest.mark.parametrize(
    ("strength", "affine", "waves"),
    # Deviations in pixels of 224: of a corner's uniform displacement, and of noise smoothed by a Gaussian, which has
    # 1 / (4 pi deviation²) of its variance; the first smooths over the whole image, of which one mean is left.
    [(1, 24.4, 488 / 224), (2, 48.8, 488 / 19.52), (3, 4.88, 12.2 / 2.44), (5, 4.88, 29.28 / 2.44)],
)
def test_an_elastic_transform_moves_by_as_much_as_published(strength, affine, waves):
    smoothing, factor, corner = digital.elastic_transform_parameters(strength, 224)
    assert corner == pytest.approx(affine)
    expected = waves * (1 / 3) ** 0.5 * (1 if strength == 1 else (1 / (4 * np.pi)) ** 0.5)
    smoothing, factor, still = given(smoothing, factor, 0)
    seeds = range(2 if strength > 2 else 30)
    places = [displaced(224, draws.key(jnp.int32(seed)), smoothing, factor, still) for seed in seeds]
    moved = np.stack(places) - np.stack(np.meshgrid(np.arange(224), np.arange(224), indexing="ij"))
    # The first two have few independent places.
    assert moved[..., 60:-60, 60:-60].std() == pytest.approx(expected, rel=0.1 if strength > 2 else 0.3)


def test_the_corners_of_an_elastic_transform_are_displaced_each_by_itself():
    """An affine map, by three corners of the square of a third of the size about the center."""
    size, key = 30, draws.key(jnp.int32(3))
    places = np.asarray(displaced(size, key, *given(np.zeros((size, size)), 0, 4)))
    moved = places - np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    corners = np.asarray(4.0 * draws.uniform(draws.fold(key, 0), (3, 2), -1.0))
    for corner, place in zip(corners, [(25, 25), (25, 5), (5, 5)], strict=True):
        np.testing.assert_allclose(moved[:, *place], corner, atol=1e-5)
    assert abs(np.diff(moved, 2, axis=1)).max() < 1e-5 and abs(np.diff(moved, 2, axis=2)).max() < 1e-5


def test_an_elastic_transform_samples_between_pixels():
    image, key = textured(1)[0], draws.fold(draws.key(jnp.int32(0)), KINDS.index("elastic_transform"))
    places = np.asarray(displaced(SIZE, key, *given(*digital.elastic_transform_parameters(4, SIZE))))
    channels = [
        scipy.ndimage.map_coordinates(image[..., channel].astype(float), places, order=1, mode="reflect")
        for channel in range(3)
    ]
    # A hundredth of a level for places in float32.
    assert abs(one("elastic_transform", 4, image)[0] - np.stack(channels, axis=-1)).max() <= 0.51


def test_frost_and_snow_brighten_a_dark_image_ever_more():
    for kind in ("snow", "frost"):
        means = [one(kind, strength, np.full((SIZE, SIZE, 3), 20, np.uint8)).mean() for strength in (1, 3, 5)]
        assert means == sorted(means) and means[0] > 25, kind


def test_frost_is_bluish_crystals_with_clear_parts_between():
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    ice = one("frost", 1, black) / 255 / 0.4
    assert 0.2 < ice.mean() < 0.7 and ice.std() > 0.15 and ice.min() < 0.1
    assert ice[..., 2].mean() > ice[..., 0].mean()
