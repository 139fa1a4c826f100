"""Encoded pictures to upright RGB, with Pillow: every kind that the web holds, and a reason for each that cannot be."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageChops

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000

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

# A progressive JPEG is decoded scan by scan, each over the whole picture: a file of 100 kB can hold thousands. Encoders
# write about ten.
_MOST_SCANS = 50

# Pictures above so many pixels are decoded one at a time: a few of the largest allowed, met by all threads at once,
# would take each thread's share of a gigabyte.
_LARGE = 12_000_000
_one_large = threading.Lock()


class Unreadable(ValueError):
    """The bytes hold no picture that can be shown; the message is a short reason to count by."""


class Encoded:
    """A JPEG, PNG, WebP, GIF, BMP or TIFF of which only the header has been read.

    Attributes:
      size: (width, height) in pixels, upright.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS):
        """Reads the header.

        Args:
          data: the encoded picture.
          max_pixels: a picture whose header says it has more pixels is refused before anything is decoded. Pillow has
            a limit of its own, at 179 million.

        Raises:
          Unreadable: "not a picture", "too many pixels", "too many scans", "truncated picture" or "broken picture".
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
                # The orientation stands behind the pixels, or Pillow itself turns them upright.
                with _one_large:
                    self._image.load()
        orientation = _orientation(self._image)
        self._turn = _UPRIGHT.get(orientation)
        width, height = self._image.size
        self.size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)

    def decode(self, shrink: int = 1) -> tuple[Image.Image, int]:
        """The picture in RGB, upright; to be called once.

        Transparent pixels are composited over white, of an animation the first frame is taken, 16-bit grey is scaled
        to 8 bits, CMYK is converted without a colour profile.

        Args:
          shrink: 1, 2, 4 or 8: 1 / shrink of its size will do. A JPEG is then decoded at that scale, which leaves most
            of the inverse transform out, and another large picture is averaged to it before anything else.

        Returns:
          The picture, and by how much it was shrunk.

        Raises:
          Unreadable: "truncated picture", "broken picture" or "32-bit pixels".
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
    """The whole of an encoded picture in RGB, upright; arguments, conversions and reasons as those of `Encoded`."""
    return Encoded(data, max_pixels).decode()[0]


@contextlib.contextmanager
def _naming_reasons() -> Iterator[None]:
    """Turns what Pillow raises into `Unreadable` with a reason."""
    try:
        yield
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable("too many pixels") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not a picture") from error
    except Exception as error:  # Pillow meets bad bytes with OSError, SyntaxError, struct.error, IndexError, ...
        raise Unreadable("truncated picture" if "truncated" in str(error).lower() else "broken picture") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, in RGB and upright; conversions and reasons as those of `Encoded.decode`."""
    with _naming_reasons():
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def open_picture(image: bytes | np.ndarray, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB picture of a `Record.image`: encoded bytes, or uint8 pixels [height, width, 3].

    Raises:
      Unreadable: for bytes that `decode` refuses, and for an array of another type or shape ("not RGB pixels").
    """
    if not isinstance(image, np.ndarray):
        return decode(image, max_pixels=max_pixels)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise Unreadable("not RGB pixels")
    return Image.fromarray(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none."""
    try:
        # The method of the class for PNGs would decode the whole picture, in search of a block behind the pixels.
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        return exif.get(ExifTags.Base.Orientation, 1)
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
    pixels = np.asarray(image)
    scaled = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)
    grey = Image.fromarray(scaled[pixels])
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], np.uint8(0), np.uint8(255))))
    return grey
