"""Evaluation and training crops: CLIP's center crop and the random resized crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxclip.config import PixelsConfig
from jaxclip.data.images.decode import MAX_PIXELS, Encoded, open_image

# An image this many times longer than wide is cropped before it is resized. Resized whole to a short side of 224, a
# strip of 1 x 60,000 pixels would take 9 GB.
_LONGEST = 32

RATIO = (3 / 4, 4 / 3)  # least and greatest width / height of a training crop

Box = tuple[int, int, int, int]

_WINDOWS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def center_crop(image: Image.Image, size: int, window: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """CLIP's evaluation transform: the short side resized to `size` (antialiased), then the center.

    The rounding is torchvision's (`Resize` then `CenterCrop`), so the pixels equal those of open_clip's and OpenAI's
    preprocessing. The exception is an image more than 32 times longer than wide, whose center is cut out first.

    Args:
      image: an RGB image.
      size: side of the result in pixels.
      window: the resampling filter, antialiased.

    Returns:
      uint8 [size, size, 3].
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long > _LONGEST * short:
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        return np.asarray(image.resize((size, size), window, box=box))
    if short != size:
        resized_long = int(size * long / short)
        width, height = (size, resized_long) if width <= height else (resized_long, size)
        image = image.resize((width, height), window)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    if (width, height) != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def prepare(image: Image.Image, size: int, config: PixelsConfig) -> np.ndarray:
    """The model's input at evaluation, by the config's `resize` and `interpolation`: uint8 [size, size, 3]."""
    window = _WINDOWS[config.interpolation]
    if config.resize == "squash":
        return np.asarray(image.resize((size, size), window))
    return center_crop(image, size, window)


def random_resized_crop(
    image: bytes | np.ndarray,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """A random crop of an image, decoded no larger than needed and resized to a square with antialiasing.

    The crop is distributed as in torchvision's `RandomResizedCrop` (the "Inception crop" of Szegedy et al. 2014,
    section 6): its area is uniform in `scale`, its aspect ratio log-uniform in `ratio`, its position uniform. After ten
    draws that do not fit, it is the largest centered crop of an allowed ratio.

    Downscaling uses a Hamming window, which is as sharp as bicubic at half the width and so takes half the time.
    Upscaling is bicubic.

    Args:
      image: a `Record.image`: encoded bytes, or uint8 pixels [height, width, 3].
      size: side of the result in pixels.
      rng: the only source of randomness.
      scale: minimum and maximum area of the crop, as fractions of the image's.
      ratio: minimum and maximum width / height of the crop.
      max_pixels: the limit for the whole image.

    Returns:
      An RGB image of `size` x `size` pixels.

    Raises:
      Unreadable: as for `decode.Encoded` and `decode.open_image`.
    """
    crops = Crops(image, max_pixels)
    return crops.cut([(random_box(*crops.size, rng, scale, ratio), size)])[0]


class Crops:
    """An image that squares are cut from, decoded once and no larger than they need.

    Attributes:
      size: (width, height) in pixels.
    """

    def __init__(self, image: bytes | np.ndarray, max_pixels: int = MAX_PIXELS):
        """Reads the header of a `Record.image`.

        Raises:
          Unreadable: as `decode.Encoded` and `decode.open_image`.
        """
        self._image: Image.Image | Encoded
        self._image = open_image(image) if isinstance(image, np.ndarray) else Encoded(image, max_pixels)
        self.size: tuple[int, int] = self._image.size

    def cut(self, squares: Sequence[tuple[Box, int]]) -> list[Image.Image]:
        """Parts of the image, each a box (left, top, right, bottom) resized to a square of so many pixels a side.

        To be called once. Raises Unreadable as `decode.Encoded.decode`.
        """
        if isinstance(self._image, Encoded):
            enough = min(min(box[2] - box[0], box[3] - box[1]) // size for box, size in squares)
            image, shrunk = self._image.decode(max((s for s in (1, 2, 4, 8) if s <= enough), default=1))
        else:
            image, shrunk = self._image, 1
        return [_resized(image, [place / shrunk for place in box], size) for box, size in squares]


def _resized(image: Image.Image, box: Sequence[float], size: int) -> Image.Image:
    left, top, right, bottom = box
    if image.size == (size, size) and (left, top, right, bottom) == (0, 0, size, size):
        return image
    shrinks = right - left >= size and bottom - top >= size
    window = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    # The sides of an image decoded at a smaller scale are rounded up, never down, so the box lies inside.
    return image.resize((size, size), window, box=(left, top, right, bottom), reducing_gap=2.0)


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """Draws (left, top, right, bottom) within an image of `width` x `height` pixels; see `random_resized_crop`."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return left, top, left + box_width, top + box_height
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
