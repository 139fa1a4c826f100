"""Image decoding to upright RGB with Pillow, and the reasons why an image cannot be decoded."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageChops, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000

# The transposition that turns an image upright, by EXIF orientation (EXIF 2.32, 4.6.4, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Every scan of a progressive JPEG is decoded over the whole image, and a file of 100 kB can contain thousands of scans.
# Encoders write about ten.
_MOST_SCANS = 50

# Images of more pixels are decoded one at a time. Otherwise several of the largest images allowed, decoded by all
# threads at once, could each take a large part of a gigabyte.
_LARGE = 12_000_000
_one_large = threading.Lock()


class Unreadable(ValueError):
    """The image cannot be decoded. The message is a short reason, by which such images are counted."""


class Encoded:
    """A JPEG, PNG, WebP, GIF, BMP or TIFF image whose header has been read.

    Attributes:
      size: (width, height) in pixels, upright.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS):
        """Reads the header.

        Args:
          data: the encoded image.
          max_pixels: an image whose header declares more pixels is rejected before anything is decoded. Pillow's own
            limit is 179 million.

        Raises:
          Unreadable: "not an image", "too many pixels", "too many scans", "truncated image" or "broken image".
        """
        with _naming_reasons():
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
            if self._image.width * self._image.height > max_pixels:
                raise Unreadable("too many pixels")
            self._is_jpeg = self._image.format in ("JPEG", "MPO")
            if self._is_jpeg and data.count(b"\xff\xda") > _MOST_SCANS:
                raise Unreadable("too many scans")
            late = self._image.format == "PNG" and "exif" not in self._image.info and b"eXIf" in data
            if late or self._image.format == "TIFF":
                # PNG: the orientation comes after the pixels. TIFF: Pillow turns the image upright as it loads it.
                with _one_large:
                    self._image.load()
        orientation = _orientation(self._image)
        self._turn = _UPRIGHT.get(orientation)
        width, height = self._image.size
        self.size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)

    def decode(self, shrink: int = 1) -> tuple[Image.Image, int]:
        """Decodes the image to upright RGB. Call this only once.

        Transparent pixels are composited over white, 16-bit gray is scaled to 8 bits (65,535 is white, and 4,095 in a
        TIFF that declares 12 bits), and CMYK is converted without a color profile. The first frame of an animation is
        decoded.

        Args:
          shrink: 1, 2, 4 or 8; an image of 1 / shrink of the size is sufficient. A JPEG is then decoded at that scale,
            which skips most of the inverse transform. Other large images are averaged down to it first.

        Returns:
          The image, and the factor by which it was actually shrunk.

        Raises:
          Unreadable: "truncated image", "broken image" or "signed or 32-bit pixels".
        """
        image: Image.Image = self._image
        width, height = image.size
        with _one_large if width * height > _LARGE else contextlib.nullcontext(), _naming_reasons():
            if self._is_jpeg and shrink > 1:
                self._image.draft(None, (width // shrink, height // shrink))
            image.load()
            if image.size == (width, height) and shrink > 1:
                averaged = width * height > _LARGE and (
                    image.mode == "RGBA" or image.mode in ("RGB", "L") and not image.has_transparency_data
                )
                image, shrink = (image.reduce(shrink), shrink) if averaged else (image, 1)
            rgb = _rgb(image)
            return rgb if self._turn is None else rgb.transpose(self._turn), shrink


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a whole image to upright RGB; arguments, conversions and reasons are those of `Encoded`."""
    return Encoded(data, max_pixels).decode()[0]


@contextlib.contextmanager
def _naming_reasons() -> Iterator[None]:
    """Converts Pillow's exceptions to `Unreadable` with a reason."""
    try:
        yield
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable("too many pixels") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, IndexError, ... for bad bytes
        raise Unreadable("truncated image" if "truncated" in str(error).lower() else "broken image") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Converts an image opened by Pillow to upright RGB; conversions and reasons are those of `Encoded.decode`."""
    with _naming_reasons():
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def open_image(image: bytes | np.ndarray, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB image of a `Record.image`: encoded bytes, or uint8 pixels [height, width, 3].

    Raises:
      Unreadable: `decode` rejects the bytes, or an array has another type or shape ("not RGB pixels").
    """
    if not isinstance(image, np.ndarray):
        return decode(image, max_pixels=max_pixels)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise Unreadable("not RGB pixels")
    return Image.fromarray(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none."""
    try:
        # PngImageFile.getexif would decode the whole image to look for a chunk after the pixels.
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        return exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not make the image unusable
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Converts a decoded image of any mode to RGB, compositing transparency over white."""
    if image.mode in ("I", "F"):
        raise Unreadable("signed or 32-bit pixels")  # the value of white is unknown
    if image.mode.startswith("I;16"):
        image = _eight_bit_gray(image)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Adobe writes CMYK JPEGs inverted, and Pillow assumes that every CMYK JPEG is inverted, even without the
        # marker.
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit_gray(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray to 8 bits (Pillow's own conversion clips at 255); a transparent value becomes alpha."""
    pixels = np.asarray(image)
    white, inverted = (1 << 16) - 1, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow reads 12-bit values as they are, and inverts 8-bit gray whose zero is white, but not 16-bit gray.
        tags = image.tag_v2
        white = (1 << tags[TiffImagePlugin.BITSPERSAMPLE][0]) - 1
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    scaled = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    gray = Image.fromarray((scaled[::-1] if inverted else scaled)[pixels])
    if "transparency" in image.info:
        gray.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], np.uint8(0), np.uint8(255))))
    return gray
