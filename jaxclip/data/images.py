"""Encoded pictures to uint8 RGB of a model's size, with Pillow."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import ExifTags, Image, ImageChops

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# How to turn a picture upright, by its EXIF orientation (EXIF 2.32, 4.6.4, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A picture this many times longer than wide is cropped before it is resized: a strip of 1 x 60,000 pixels,
# resized whole to a short side of 224, would take 9 GB.
_LONGEST = 32


class Unreadable(ValueError):
    """The bytes hold no picture that can be shown; the message is a short reason to count by."""


def decode(data: bytes, *, max_pixels: int = 64_000_000) -> Image.Image:
    """Decodes a JPEG, PNG, WebP, GIF, BMP or TIFF to an upright RGB picture.

    Transparent pixels are composited over white, EXIF orientation is applied, of an animation the first frame is
    taken, 16-bit grey is scaled to 8 bits, CMYK is converted without a colour profile.

    Args:
      data: the encoded picture.
      max_pixels: a picture whose header says it has more pixels is refused before anything is decoded. Pillow has
        a limit of its own, at 179 million.

    Raises:
      Unreadable: "not a picture", "truncated picture", "broken picture", "too many pixels" or "32-bit pixels".
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise Unreadable("too many pixels")
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
        return rgb if upright is None else rgb.transpose(upright)
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable("too many pixels") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not a picture") from error
    except Exception as error:  # Pillow meets bad bytes with OSError, SyntaxError, struct.error, IndexError, ...
        raise Unreadable("truncated picture" if "truncated" in str(error).lower() else "broken picture") from error


def open_picture(image: bytes | np.ndarray) -> Image.Image:
    """The RGB picture of a `Record.image`: encoded bytes, or uint8 pixels [height, width, 3].

    Raises:
      Unreadable: for bytes that `decode` refuses, and for an array of another type or shape ("not RGB pixels").
    """
    if not isinstance(image, np.ndarray):
        return decode(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise Unreadable("not RGB pixels")
    return Image.fromarray(image)


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's evaluation transform: the short side resized to `size` (antialiased bicubic), then the centre.

    The rounding is torchvision's (`Resize` then `CenterCrop`), so the pixels equal those of open_clip's and OpenAI's
    preprocessing, except for pictures over 32 times longer than wide, whose centre is cut out first.

    Args:
      image: an RGB picture.
      size: side of the result in pixels.

    Returns:
      uint8 [size, size, 3].
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long > _LONGEST * short:
        left, top = (width - short) / 2, (height - short) / 2
        return _resize(image, size, (left, top, left + short, top + short))
    if short != size:
        resized_long = int(size * long / short)
        width, height = (size, resized_long) if width <= height else (resized_long, size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    if (width, height) != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of the picture, resized to a square (antialiased bicubic).

    The part is distributed as in torchvision's `RandomResizedCrop` (the "Inception crop" of Szegedy et al. 2014,
    section 6): its area uniform in `scale`, its aspect ratio log-uniform in `ratio`, its place uniform; after ten parts
    that do not fit, the largest centred one of an allowed ratio.

    Args:
      image: an RGB picture.
      size: side of the result in pixels.
      rng: the only source of randomness.
      scale: least and greatest area of the part, as fractions of the picture's.
      ratio: least and greatest width / height of the part.

    Returns:
      uint8 [size, size, 3].
    """
    return _resize(image, size, _random_box(*image.size, rng, scale, ratio))


def _random_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws (left, top, right, bottom) within a picture of `width` x `height` pixels."""
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


def _resize(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of the picture as uint8 [size, size, 3]."""
    if image.size != (size, size) or box != (0, 0, size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block is no reason to lose a sound picture
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any decoded picture in mode RGB, transparency composited over white."""
    if image.mode in ("I", "F"):
        raise Unreadable("32-bit pixels")  # which value is white, nothing says
    if image.mode.startswith("I;16"):
        image = _eight_bit_grey(image)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Adobe writes CMYK JPEGs inverted. Pillow takes every CMYK JPEG for one of Adobe's, marker or not.
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by scaling (Pillow's own conversion clips at 255), its transparent value to alpha."""
    pixels = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
