"""Bad records of many kinds, as in web crawls, each with the reason under which it is counted."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(rng: np.random.Generator, height: int = 40, width: int = 56) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *, depth: int = 8, color: int = 0, rows: bytes = b"\0" * 64, more: bytes = b""
) -> bytes:
    """A PNG that declares so many pixels, whatever its content."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def jpeg_of(data: bytes, width: int, height: int) -> bytes:
    """A JPEG with a false size in its header."""
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def many_scans(rng: np.random.Generator, number: int = 500) -> bytes:
    """A progressive JPEG whose last scan is repeated: every repetition is a pass over the whole image."""
    data = encode(noise(rng, 64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * number + b"\xff\xd9"


def webp_of(width: int, height: int) -> bytes:
    """A WebP (extended form) that declares a canvas of so many pixels."""
    canvas = struct.pack("<I", 0)[:4] + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunk = b"VP8X" + struct.pack("<I", 10) + canvas
    frame = encode(Image.new("RGB", (8, 8)), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunk) + len(frame)) + b"WEBP" + chunk + frame


def gif_of(data: bytes, width: int, height: int) -> bytes:
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def bmp_of(data: bytes, width: int, height: int) -> bytes:
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def tiff_of(width: int, height: int, strip_bytes: int) -> bytes:
    """A TIFF whose only strip has a false size."""
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries += [(279, strip_bytes)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)


def flip(data: bytes, rng: np.random.Generator, first: int, number: int) -> bytes:
    damaged = np.frombuffer(data, np.uint8).copy()
    damaged[rng.integers(first, len(data), number)] ^= rng.integers(1, 256, number, dtype=np.uint8)
    return damaged.tobytes()


def idat_damaged(data: bytes) -> bytes:
    """A PNG whose pixels fail their checksum."""
    place = data.index(b"IDAT") + 24
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


Make = Callable[[np.random.Generator], bytes]

# Images that cannot be used, by kind: how one is made, and the reason it is counted under.
IMAGES: dict[str, tuple[Make, str]] = {
    "nothing": (lambda rng: b"", "not an image"),
    "a page named .jpg": (lambda rng: b"<!doctype html><title>404</title>" + rng.bytes(99), "not an image"),
    "noise": (lambda rng: b"\0" + rng.bytes(3000), "not an image"),
    "zeros": (lambda rng: bytes(int(rng.integers(1, 5000))), "not an image"),
    "a vector graphic": (lambda rng: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "a pickle": (lambda rng: b"\x80\x04\x95" + rng.bytes(60), "not an image"),
    "an archive": (lambda rng: b"PK\x03\x04" + rng.bytes(200), "not an image"),
    "a film": (lambda rng: b"\0\0\0\x18ftypmp42" + rng.bytes(200), "not an image"),
    "a Postscript file": (lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "a portable pixmap": (lambda rng: b"P6 4 4 255\n" + rng.bytes(48), "not an image"),
    "start of a jpeg": (lambda rng: encode(noise(rng), "JPEG")[:3], "not an image"),
    "cut jpeg": (lambda rng: encode(noise(rng), "JPEG")[: int(rng.integers(800, 1800))], "truncated image"),
    "cut png": (lambda rng: encode(noise(rng), "PNG")[: int(rng.integers(300, 3000))], "truncated image"),
    "cut webp": (lambda rng: encode(noise(rng), "WEBP")[: int(rng.integers(100, 700))], "broken image"),
    "cut gif": (lambda rng: encode(noise(rng), "GIF")[: int(rng.integers(900, 1500))], "truncated image"),
    "cut bmp": (lambda rng: encode(noise(rng), "BMP")[: int(rng.integers(100, 3000))], "truncated image"),
    "damaged png": (lambda rng: idat_damaged(encode(noise(rng), "PNG")), "broken image"),
    "png bomb": (lambda rng: png(100_000 + int(rng.integers(99)), 100_000), "too many pixels"),
    "png of 81 megapixels": (lambda rng: png(9000, 9000 + int(rng.integers(99))), "too many pixels"),
    "jpeg bomb": (lambda rng: jpeg_of(encode(noise(rng), "JPEG"), 65_500, 65_500), "too many pixels"),
    "webp bomb": (lambda rng: webp_of(16_384, 16_384), "too many pixels"),
    "gif bomb": (lambda rng: gif_of(encode(noise(rng), "GIF"), 65_535, 65_535), "too many pixels"),
    "bmp bomb": (lambda rng: bmp_of(encode(noise(rng), "BMP"), 40_000, 40_000), "too many pixels"),
    "tiff bomb": (lambda rng: tiff_of(60_000, 60_000, 1 << 31), "too many pixels"),
    "tiff with a false strip": (lambda rng: tiff_of(64, 64, 1 << 31), "truncated image"),
    "jpeg of many scans": (many_scans, "too many scans"),
    "floating point tiff": (lambda rng: encode(Image.new("F", (9, 9), 0.5), "TIFF"), "signed or 32-bit pixels"),
}

# Captions that cannot be used: the members beside a sound image, by their suffix.
CAPTIONS: dict[str, dict[str, bytes]] = {
    "no caption": {},
    "empty caption": {"txt": b""},
    "blank caption": {"txt": b" \t\r\n\xc2\xa0 "},
    "empty json": {"json": b"{}"},
    "broken json": {"json": b'{"caption": "a c'},
    "json without text": {"json": json.dumps({"caption": None, "text": 7, "captions": [3, ""]}).encode()},
    "json of a list": {"json": b'["a cat"]'},
    "deep json": {"json": b"[" * 200_000},
}

# Odd images that can be used all the same.
SOUND: dict[str, Make] = {
    "cmyk": lambda rng: encode(noise(rng).convert("CMYK"), "JPEG"),
    "16-bit": lambda rng: encode(Image.fromarray(rng.integers(0, 65536, (9, 9)).astype(np.uint16)), "PNG"),
    "palette": lambda rng: encode(noise(rng).convert("P"), "PNG"),
    "transparent": lambda rng: encode(noise(rng).convert("RGBA"), "PNG"),
    "progressive": lambda rng: encode(noise(rng), "JPEG", progressive=True),
    "animated gif": lambda rng: encode(noise(rng), "GIF", save_all=True, append_images=[noise(rng), noise(rng)]),
    "animated webp": lambda rng: encode(noise(rng), "WEBP", save_all=True, append_images=[noise(rng)]),
    "animated png": lambda rng: encode(noise(rng), "PNG", save_all=True, append_images=[noise(rng)]),
    "one pixel": lambda rng: encode(noise(rng, 1, 1), "PNG"),
    "strip": lambda rng: encode(noise(rng, 1, 3000), "PNG"),
    "webp": lambda rng: encode(noise(rng), "WEBP"),
    "jpeg": lambda rng: encode(noise(rng), "JPEG"),
}


# Expensive images: as large as allowed, or with bombs in their metadata. They may be used or rejected.
_ROW = b"\0" + bytes(8000)
DEAR: dict[str, Callable[[], bytes]] = {
    "64 megapixels gray": lambda: png(8000, 8000, rows=_ROW * 8000),
    "64 megapixels rgb": lambda: png(8000, 8000, color=2, rows=(b"\0" + bytes(24_000)) * 8000),
    "64 megapixels rgba": lambda: png(8000, 8000, color=6, rows=(b"\0" + bytes(32_000)) * 8000),
    "64 megapixels of 16 bits": lambda: png(8000, 8000, depth=16, rows=(b"\0" + bytes(16_000)) * 8000),
    "64 megapixels jpeg": lambda: encode(Image.new("RGB", (8000, 8000), "teal"), "JPEG"),
    "64 megapixels progressive jpeg": lambda: encode(Image.new("RGB", (8000, 8000)), "JPEG", progressive=True),
    "64 megapixels cmyk jpeg": lambda: encode(Image.new("CMYK", (8000, 8000)), "JPEG"),
    "64 megapixels webp": lambda: encode(Image.new("RGB", (8000, 8000), "teal"), "WEBP", method=0),
    "64 megapixels gif": lambda: encode(Image.new("P", (8000, 8000)), "GIF"),
    "64 megapixels transparent gif": lambda: encode(Image.new("P", (8000, 8000)), "GIF", transparency=0),
    "64 megapixels bilevel tiff": lambda: encode(Image.new("1", (8000, 8000)), "TIFF", compression="group4"),
    "64 megapixels lzw tiff": lambda: encode(Image.new("RGB", (8000, 8000)), "TIFF", compression="tiff_lzw"),
    "64 megapixels cut short": lambda: encode(Image.new("RGB", (8000, 8000), "teal"), "JPEG")[:200_000],
    "profile bomb": lambda: png(
        8, 8, rows=b"\0" * 72, more=png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300_000_000), 9))
    ),
    "text bomb": lambda: png(
        8, 8, rows=b"\0" * 72, more=png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(300_000_000), 9))
    ),
    "many chunks": lambda: png(8, 8, rows=b"\0" * 72, more=png_chunk(b"tEXt", b"x\0y") * 200_000),
    "1,000 frames": lambda: encode(
        Image.new("L", (64, 64)),
        "GIF",
        save_all=True,
        append_images=[Image.new("L", (64, 64), 255 - i % 255) for i in range(999)],
    ),
}


def write_shards(folder, kinds: int, good: int, seed: int = 0) -> tuple[list[str | None], str]:
    """Writes `kinds` records of every bad kind among `good` sound ones, in four shards, shuffled.

    The sound one of index i has the caption "number i"; some of their captions hold broken UTF-8 or go on for long.

    Returns:
      For every record in the source's order the reason to skip it, None for a sound one; and the shards' pattern.
    """
    import tarfile

    rng = np.random.default_rng(seed)
    bad = [(kind, None) for kind in IMAGES] + [(None, kind) for kind in CAPTIONS]
    records: list = [*(bad * kinds), *((None, None, index) for index in range(good))]
    sound = list(SOUND.values())
    reasons: list[str | None] = []
    order = rng.permutation(len(records))
    for shard in range(4):
        with tarfile.open(folder / f"web-{shard}.tar", "w") as tar:
            for place in order[shard::4]:
                record = records[place]
                members = {"jpg": sound[int(place) % len(sound)](rng), "txt": b"a caption"}
                reason = None
                if len(record) == 3:
                    tail = (b"", b" \xff\xfe\x80", b" " + b"long " * 2000)[record[2] % 3]
                    members["txt"] = f"number {record[2]}".encode() + tail
                elif record[0]:
                    make, reason = IMAGES[record[0]]
                    members["jpg"] = make(rng)
                else:
                    members, reason = {"jpg": members["jpg"]} | CAPTIONS[record[1]], "no caption"
                reasons.append(reason)
                for suffix, data in members.items():
                    member = tarfile.TarInfo(f"{place:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return reasons, str(folder / "web-*.tar")
