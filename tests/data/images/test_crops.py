"""Evaluation crops equal to torchvision's, and training crops with the distribution of torchvision's."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.images import crops
from jaxclip.data.images import decode as images


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def torchvision_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """torchvision 0.20's Resize(size, BICUBIC) and CenterCrop(size) on a PIL image, line for line."""
    w, h = image.size
    short, long = (w, h) if w <= h else (h, w)
    new_short, new_long = size, int(size * long / short)
    new_w, new_h = (new_short, new_long) if w <= h else (new_long, new_short)
    image = image.resize((new_w, new_h), Image.Resampling.BICUBIC)
    crop_top = int(round((new_h - size) / 2.0))
    crop_left = int(round((new_w - size) / 2.0))
    return np.asarray(image.crop((crop_left, crop_top, crop_left + size, crop_top + size)))


@pytest.mark.parametrize("size", [32, 33, 224])
@pytest.mark.parametrize(
    ("height", "width"),
    [(32, 32), (224, 224), (375, 500), (500, 375), (333, 334), (224, 301), (33, 97), (7, 200), (1, 1)],
)
def test_center_crop_equals_torchvision(height, width, size):
    image = random_image(height, width)
    np.testing.assert_array_equal(crops.center_crop(image, size), torchvision_center_crop(image, size))


@pytest.mark.parametrize(("more", "start"), [(1, 0), (3, 2), (5, 2), (7, 4), (9, 4), (11, 6)])
def test_half_of_an_odd_margin_is_rounded_to_an_even_number(more, start):
    image = random_image(16, 16 + more)
    np.testing.assert_array_equal(crops.center_crop(image, 16), np.asarray(image)[:, start : start + 16])
    upright = image.transpose(Image.Transpose.TRANSPOSE)
    np.testing.assert_array_equal(crops.center_crop(upright, 16), np.asarray(upright)[start : start + 16])


@pytest.mark.parametrize(("height", "width"), [(1, 60_000), (60_000, 1), (2, 4_001)])
def test_center_crop_of_a_strip_is_cut_before_it_is_resized(height, width, monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *a, **k: sizes.append(to) or resize(self, to, *a, **k))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 - 3 : height // 2 + 4, width // 2 - 3 : width // 2 + 4] = 255
    crop = crops.center_crop(Image.fromarray(pixels), 224)
    assert sizes == [(224, 224)]
    assert crop.shape == (224, 224, 3) and crop.min() == 255


def test_crops_of_the_very_size_are_the_image_itself():
    image = random_image(32, 32)
    whole = crops.random_resized_crop(
        np.asarray(image), 32, np.random.default_rng(0), scale=(1.0, 1.0), ratio=(1.0, 1.0)
    )
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(image))
    np.testing.assert_array_equal(crops.center_crop(image, 32), np.asarray(image))


def boxes(width: int, height: int, scale, ratio=(3 / 4, 4 / 3), count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([crops.random_box(width, height, rng, scale, ratio) for _ in range(count)])


def test_random_boxes_have_torchvisions_distribution():
    left, top, right, bottom = boxes(1000, 800, scale=(0.08, 0.5)).T
    assert min(left.min(), top.min()) >= 0 and right.max() <= 1000 and bottom.max() <= 800
    area = (right - left) * (bottom - top) / (1000 * 800)
    ratio = np.log((right - left) / (bottom - top))
    # Uniform: the mean of n draws lies within 4 standard errors, (high - low) / sqrt(12 n); rounding adds under 1e-3.
    for values, low, high in [(area, 0.08, 0.5), (ratio, math.log(3 / 4), math.log(4 / 3))]:
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * len(values)) + 1e-3
        assert values.min() == pytest.approx(low, abs=0.01) and values.max() == pytest.approx(high, abs=0.01)
    for place in (left / (1000 - (right - left)), top / (800 - (bottom - top))):
        assert abs(place.mean() - 0.5) < 4 / math.sqrt(12 * len(place)) + 1e-3


def test_the_ratio_of_a_random_box_is_width_over_height():
    left, top, right, bottom = boxes(1000, 800, scale=(0.1, 0.2), ratio=(1.5, 2.0)).T
    assert ((right - left) / (bottom - top)).min() == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1000, 10, (493, 0, 506, 10)), (10, 1000, (0, 493, 10, 506)), (1000, 1, (499, 0, 500, 1)), (1, 1, (0, 0, 1, 1))],
)
def test_a_box_that_never_fits_falls_back_to_the_center(width, height, box):
    assert {tuple(found) for found in boxes(width, height, scale=(1.0, 1.0), count=20)} == {box}


def test_random_crop_resizes_the_box_it_draws():
    # A ramp: the crop's corners determine the box.
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    left, _, right, _ = crops.random_box(256, 256, np.random.default_rng(5), (0.2, 0.3), (1.0, 1.0))
    crop = np.asarray(crops.random_resized_crop(ramp, 64, np.random.default_rng(5), (0.2, 0.3), (1.0, 1.0)))
    step = (right - left) / 64
    expected = left + (np.arange(64) + 0.5) * step - 0.5
    assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8
    assert np.abs(crop[30, :, 0] - expected).max() <= 1


def photograph(height: int, width: int) -> Image.Image:
    """Smooth, so that how it is shrunk matters little: waves of a few dozen pixels."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 23 + k) + np.cos(y / 17 - k) + np.sin((x + y) / 41) for k in range(3)]
    return Image.fromarray(np.stack([(wave + 3) * 42 for wave in waves], -1).astype(np.uint8))


@pytest.mark.parametrize(("size", "shrink"), [(300, 1), (200, 2), (100, 4), (40, 8)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_decoded_no_larger_than_needed_and_looks_the_same(size, shrink, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photograph(640, 480)
    data = encode(image, "JPEG", quality=95, exif=exif)
    sizes = []
    load = images._rgb
    monkeypatch.setattr(images, "_rgb", lambda decoded: sizes.append(decoded.size) or load(decoded))
    crop = crops.random_resized_crop(data, size, np.random.default_rng(3), (0.9, 1.0))
    assert sizes == [(480 // shrink, 640 // shrink)]
    upright = images.decode(data)
    box = crops.random_box(*upright.size, np.random.default_rng(3), (0.9, 1.0), (3 / 4, 4 / 3))
    expected = upright.resize((size, size), Image.Resampling.HAMMING, box=box)
    difference = np.abs(np.asarray(crop).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_large_png_is_averaged_before_anything_else(mode, monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 100_000)
    image = photograph(640, 480).convert(mode)
    crop = crops.random_resized_crop(encode(image, "PNG"), 50, np.random.default_rng(0), (1.0, 1.0), (0.75, 0.75))
    expected = images.decode(encode(image, "PNG")).resize((50, 50), Image.Resampling.HAMMING)
    difference = np.abs(np.asarray(crop).astype(int) - np.asarray(expected).astype(int))
    assert crop.size == (50, 50) and difference.mean() < 1.5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 900), (2000, 7), (31, 33)])
def test_no_shape_is_too_odd(form, height, width):
    data = encode(random_image(height, width), form)
    for seed in range(20):
        assert crops.random_resized_crop(data, 16, np.random.default_rng(seed), (0.08, 1.0)).size == (16, 16)


def test_an_image_over_the_limit_is_refused():
    with pytest.raises(images.Unreadable, match="too many pixels"):
        crops.random_resized_crop(
            encode(random_image(10, 11), "PNG"), 4, np.random.default_rng(0), (1, 1), max_pixels=109
        )
