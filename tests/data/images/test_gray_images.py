"""Gray images of 8, 12 and 16 bits, as radiographs are stored, from a table of files to training and evaluation."""

from __future__ import annotations

import io
import pathlib
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from jaxclip.config import DataConfig
from jaxclip.data import order, tokenizers
from jaxclip.data.images.decode import decode
from jaxclip.data.record import Record
from jaxclip.data.sources import open_source
from jaxclip.data.views import Views
from jaxclip.inputs import Image as ImageInput
from jaxclip.inputs import Text

SIZE = 16
# Each of the 256 levels once, in an order without edges, which JPEG would blur.
LEVELS = np.arange(SIZE**2).reshape(SIZE, SIZE)


def encode(pixels: np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """An uncompressed TIFF of two values in three bytes, which Pillow reads and does not write."""
    first, second = values.reshape(-1, 2).T
    data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    height, width = values.shape
    # Size, bits, no compression, zero is black, and where the pixels are (TIFF 6.0, section 8).
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def big_endian_tiff() -> bytes:
    return encode((LEVELS * 257).astype(">u2"), "TIFF")


WHITE_IS_ZERO = {262: 0}  # as of DICOM's MONOCHROME1
FORMS: dict[str, Callable[[], bytes]] = {
    "gray.jpg": lambda: encode(LEVELS.astype(np.uint8), "JPEG", quality=100),
    "gray.png": lambda: encode(LEVELS.astype(np.uint8), "PNG"),
    "gray.tiff": lambda: encode(LEVELS.astype(np.uint8), "TIFF"),
    "gray-white-is-zero.tiff": lambda: encode(LEVELS.astype(np.uint8), "TIFF", tiffinfo=WHITE_IS_ZERO),
    "16-bit.png": lambda: encode((LEVELS * 257).astype(np.uint16), "PNG"),
    "16-bit.tiff": lambda: encode((LEVELS * 257).astype(np.uint16), "TIFF"),
    "16-bit-big-endian.tiff": big_endian_tiff,
    "16-bit-compressed.tiff": lambda: encode((LEVELS * 257).astype(np.uint16), "TIFF", compression="tiff_lzw"),
    "16-bit-white-is-zero.tiff": lambda: encode(
        (65_535 - LEVELS * 257).astype(np.uint16), "TIFF", tiffinfo=WHITE_IS_ZERO
    ),
    "12-bit.tiff": lambda: tiff_of_12_bits((LEVELS * 4095 + 127) // 255),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A table of the images with a report each."""
    folder = tmp_path_factory.mktemp("radiographs")
    for name, make in FORMS.items():
        (folder / name).write_bytes(make())
    reports = "".join(f'{name},"No effusion. The heart is of normal size."\n' for name in FORMS)
    (folder / "reports.csv").write_text("path,text\n" + reports)
    return folder / "reports.csv"


@pytest.fixture(scope="module")
def views() -> Views:
    """Crops of the whole image: a square one of the model's size is not resized."""
    config = DataConfig(train="reports.csv", train_vocabulary=520, crop_scale=(1.0, 1.0), captions="sentence")
    words = ["No effusion.", "The heart is of normal size."] * 2
    return Views({"image": ImageInput(SIZE), "text": Text(16)}, config, tokenizers.train(words, 520))


@pytest.mark.parametrize("name", FORMS)
def test_gray_has_its_levels_in_three_equal_channels_in_training_and_in_evaluation(name, table, views):
    index = list(FORMS).index(name)
    (record,) = open_source(str(table)).read([index])
    assert isinstance(record, Record)
    rows = [views.training(record, int(order.record_keys(0, 0, index)), 0, index), views.evaluation(record, index)]
    for row in rows:
        assert isinstance(row, dict), row
        pixels = row["image"]
        assert pixels.dtype == np.uint8 and pixels.shape == (SIZE, SIZE, 3)
        assert (pixels == pixels[..., :1]).all()
        np.testing.assert_allclose(pixels[..., 0].astype(int), LEVELS, atol=1 if name.endswith("jpg") else 0)
    assert rows[0]["text"] in ("No effusion.", "The heart is of normal size.")


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_white_of_16_bits_is_the_largest_value_and_not_that_of_the_image(form):
    """Values of 12 bits stay dark: nothing in the file says that they are no dark image."""
    values = np.array([[0, 128, 129, 4095, 32_767, 65_535]], np.uint16)
    expected = np.rint(values / 257).astype(int)
    np.testing.assert_array_equal(np.asarray(decode(encode(values, form)))[..., 0], expected)
    np.testing.assert_array_equal(np.asarray(decode(encode(values[:, :4], form)))[..., 0], [[0, 0, 1, 16]])
