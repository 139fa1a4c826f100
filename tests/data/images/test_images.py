"""Decoding of all kinds of images to upright RGB, and crops equal to torchvision's."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.images import decode as images

HALF = Image.new("L", (8, 8), 128)


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def solid(mode: str, color) -> Image.Image:
    return Image.new(mode, (8, 8), color)


def palette(transparency=None) -> bytes:
    """A png whose whole image is color 1 of its palette, blue."""
    image = solid("P", 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def gray_16_bit(value: int, **options) -> bytes:
    return encode(Image.fromarray(np.full((8, 8), value, np.uint16)), "PNG", **options)


def signed_16_bit_tiff() -> bytes:
    data = encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "TIFF", tiffinfo={339: 2})
    assert Image.open(io.BytesIO(data)).tag_v2[339] == (2,)
    return data


def cmyk_jpeg(*, adobe: bool) -> bytes:
    """Cyan with some black. Pillow writes what Adobe does, inverted values and a marker; or neither of the two."""
    image = solid("CMYK", (255, 0, 0, 51) if adobe else (0, 255, 255, 204))
    data = encode(image, "JPEG", quality=100, subsampling=0)
    if adobe:
        assert b"Adobe" in data
        return data
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def animation(form: str) -> bytes:
    frames = [solid("RGB", (255, 0, 0)), solid("RGB", (0, 255, 0))]
    options = {"lossless": True} if form == "WEBP" else {}
    return encode(frames[0], form, save_all=True, append_images=frames[1:], duration=100, **options)


def with_alpha(mode: str, color) -> Image.Image:
    image = solid(mode, color)
    image.putalpha(HALF)
    return image


@pytest.mark.parametrize(
    ("data", "color"),
    [
        pytest.param(encode(solid("RGB", (200, 100, 50)), "PNG"), (200, 100, 50), id="rgb-png"),
        pytest.param(encode(solid("RGB", (200, 100, 50)), "JPEG", quality=100), (200, 100, 50), id="rgb-jpeg"),
        pytest.param(encode(solid("RGB", (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50), id="rgb-webp"),
        pytest.param(encode(solid("RGB", (200, 100, 50)), "BMP"), (200, 100, 50), id="rgb-bmp"),
        pytest.param(encode(solid("RGB", (200, 100, 50)), "TIFF"), (200, 100, 50), id="rgb-tiff"),
        pytest.param(encode(solid("RGB", (200, 100, 50)), "GIF"), (200, 100, 50), id="gif"),
        pytest.param(encode(with_alpha("RGB", (255, 0, 0)), "PNG"), (255, 127, 127), id="rgba-png"),
        pytest.param(encode(with_alpha("RGB", (255, 0, 0)), "WEBP", lossless=True), (255, 127, 127), id="rgba-webp"),
        pytest.param(encode(solid("RGBA", (0, 0, 0, 0)), "PNG"), (255, 255, 255), id="nothing-but-transparent"),
        pytest.param(encode(with_alpha("L", 0), "PNG"), (127, 127, 127), id="gray-with-alpha"),
        pytest.param(palette(), (0, 0, 255), id="palette"),
        pytest.param(palette(b"\xff\x80"), (127, 127, 255), id="palette-with-alpha"),
        pytest.param(palette(1), (255, 255, 255), id="palette-with-transparent-color"),
        pytest.param(encode(solid("L", 90), "PNG"), (90, 90, 90), id="gray"),
        pytest.param(encode(solid("L", 90), "PNG", transparency=90), (255, 255, 255), id="gray-all-transparent"),
        pytest.param(encode(solid("1", 1), "PNG"), (255, 255, 255), id="one-bit"),
        pytest.param(gray_16_bit(25_700), (100, 100, 100), id="16-bit-gray"),
        pytest.param(gray_16_bit(65_535), (255, 255, 255), id="16-bit-white"),
        pytest.param(gray_16_bit(65_300), (254, 254, 254), id="16-bit-rounded"),
        pytest.param(gray_16_bit(300, transparency=300), (255, 255, 255), id="16-bit-all-transparent"),
        pytest.param(cmyk_jpeg(adobe=True), (0, 204, 204), id="adobe-cmyk-jpeg"),
        pytest.param(cmyk_jpeg(adobe=False), (0, 204, 204), id="plain-cmyk-jpeg"),
        pytest.param(encode(solid("CMYK", (255, 0, 0, 51)), "TIFF"), (0, 204, 204), id="cmyk-tiff"),
        pytest.param(animation("GIF"), (255, 0, 0), id="first-frame-of-gif"),
        pytest.param(animation("PNG"), (255, 0, 0), id="first-frame-of-png"),
        pytest.param(animation("WEBP"), (255, 0, 0), id="first-frame-of-webp"),
    ],
)
def test_every_kind_of_image_becomes_rgb(data, color):
    image = images.decode(data)
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels - color).max() <= (3 if data.startswith(b"\xff\xd8") else 0)  # JPEG rounds in YCbCr


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
# The pixels in the file for each orientation (EXIF 2.32, 4.6.4); the expected result is `UPRIGHT`.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],  # turned to the right to be seen
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(STORED[orientation]).resize(
        (STORED[orientation].shape[1] * 8, STORED[orientation].shape[0] * 8), Image.Resampling.NEAREST
    )
    data = encode(stored.convert("RGB"), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    seen = np.asarray(images.decode(data))[4::8, 4::8, 0].astype(int)
    assert seen.shape == UPRIGHT.shape
    assert np.abs(seen - UPRIGHT).max() <= 8  # jpeg


def test_broken_exif_does_not_lose_the_image():
    data = encode(random_image(16, 24), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of a corrupt EXIF block
        assert images.decode(data).size == (24, 16)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "not an image", id="nothing"),
        pytest.param(b"<html>404</html>", "not an image", id="html"),
        pytest.param(bytes(4096), "not an image", id="zeros"),
        pytest.param(b"P6 2 2 255 " + bytes(12), "not an image", id="format-not-opened"),
        pytest.param(encode(random_image(64, 64), "JPEG")[:2000], "truncated image", id="cut-jpeg"),
        pytest.param(encode(random_image(64, 64), "PNG")[:2000], "truncated image", id="cut-png"),
        pytest.param(encode(random_image(64, 64), "WEBP")[:500], "broken image", id="cut-webp"),
        pytest.param(png_header(8_001, 8_000), "too many pixels", id="large"),
        pytest.param(png_header(100_000, 100_000), "too many pixels", id="bomb"),
        pytest.param(encode(Image.new("F", (4, 4)), "TIFF"), "signed or 32-bit pixels", id="float"),
        pytest.param(signed_16_bit_tiff(), "signed or 32-bit pixels", id="signed"),
    ],
)
def test_bad_bytes_are_unreadable_for_a_reason(data, reason):
    with pytest.raises(images.Unreadable) as raised:
        images.decode(data)
    assert str(raised.value) == reason


def test_the_limit_of_pixels_is_the_callers():
    data = encode(random_image(10, 10), "PNG")
    assert images.decode(data, max_pixels=100).size == (10, 10)
    with pytest.raises(images.Unreadable, match="too many pixels"):
        images.decode(data, max_pixels=99)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much of this
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_raise_only_unreadable(form):
    data = encode(with_alpha("RGB", (9, 8, 7)) if form in ("PNG", "WEBP") else random_image(8, 8), form)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, min(len(data), 200), size=rng.integers(1, 8))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            image = images.decode(damaged.tobytes()[: rng.integers(1, len(data) + 1)], max_pixels=1_000_000)
        except images.Unreadable:
            continue
        assert image.mode == "RGB" and min(image.size) > 0


def test_open_image_takes_bytes_and_pixels():
    image = random_image(5, 7)
    for form in (encode(image, "PNG"), np.asarray(image)):
        np.testing.assert_array_equal(np.asarray(images.open_image(form)), np.asarray(image))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4), (0, 7, 3), (1, 5, 7, 3)])
def test_open_image_refuses_other_arrays(shape):
    with pytest.raises(images.Unreadable, match="not RGB pixels"):
        images.open_image(np.zeros(shape, np.uint8))
    with pytest.raises(images.Unreadable, match="not RGB pixels"):
        images.open_image(np.zeros((5, 7, 3), np.float32))
