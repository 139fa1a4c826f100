"""Malicious and damaged weight files: over a thousand with hostile_npz, generated deterministically."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

TRAP = "trap"  # a file in the working directory, which must not come to be


@dataclasses.dataclass(frozen=True)
class Hostile:
    """Files, of which the first is opened.

    Attributes:
      files: their content by name.
      hole: how many bytes without content follow in the first.
      tail: what comes after them.
      links: symbolic links beside them, to what.
      refused: whether it must be rejected; if not, opened weights must be as declared.
    """

    files: dict[str, bytes]
    hole: int = 0
    tail: bytes = b""
    links: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: bool = True

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        folder.mkdir()
        for name, target in self.links.items():
            (folder / name).symlink_to(target)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        first = folder / next(iter(self.files))
        os.truncate(first, first.stat().st_size + self.hole)
        with first.open("ab") as file:
            file.write(self.tail)
        return first


class Touch:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return open, (TRAP, "w")


def one(content: bytes, name: str = "model.safetensors", **more: Any) -> Hostile:
    return Hostile({name: content}, **more)


GOOD_HEADER = {
    "__metadata__": {"format": "pt"},
    "visual.proj": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "visual.conv1.weight": {"dtype": "F16", "shape": [2, 1, 2], "data_offsets": [24, 32]},
    "logit_scale": {"dtype": "F32", "shape": [], "data_offsets": [32, 36]},
}
DATA = bytes(range(36))


def safetensors(header: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    """A file with this header, a dict or the text of one, and a length that may be another than the header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return ((len(text) if length is None else length) % (1 << 64)).to_bytes(8, "little") + text + data


GOOD = safetensors(GOOD_HEADER)


def changed(**fields: Any) -> Hostile:
    """The good file, with other fields for the first tensor."""
    return one(safetensors(GOOD_HEADER | {"visual.proj": GOOD_HEADER["visual.proj"] | fields}))


def lengths() -> Iterator[tuple[str, Hostile]]:
    for size in range(0, len(GOOD), 5):
        yield f"cut-{size}", one(GOOD[:size])
    for extra in (1, 2, 7, 8, 64, 4096):
        yield f"trailing-{extra}", one(GOOD + bytes(extra))
    header = len(GOOD) - len(DATA) - 8
    text = GOOD[8 : 8 + header]
    for length in (0, 1, 2, header - 1, header + 1, header + 8, header + len(DATA), header + len(DATA) + 1):
        yield f"length-{length}", one(safetensors(text, length=length))
    for power in (20, 23, 24, 26, 27, 31, 32, 33, 40, 53, 62, 63, 64):
        yield f"length-2^{power}", one(safetensors(text, length=(1 << power) - 1))
        yield f"hole-2^{power}", one(safetensors(text, length=(1 << power) - 1), hole=min(1 << power, 1 << 29))
    yield "hole-of-a-tebibyte", one(GOOD, hole=1 << 40)
    yield "empty-header", one(safetensors(b"{}", b""))
    yield "no-tensors", one(safetensors({"__metadata__": {}}, b""))


SIZES = [
    None, True, 6, 2.0, "2", {}, [[2, 3]], [2.0, 3], ["2", 3], [None, 3], [True, 6], [-2, -3], [-1], [2], [2, 3, 2],
    [3, 3], [], [0], [0, 3], [1 << 31, 3], [1 << 32, 1 << 32], [1 << 62, 4], [1 << 63, 2], [1 << 64, 1], [10**30],
    [10**4000], [0, 1 << 62, 1 << 62], [1] * 31 + [2, 3], [1] * 100_000, [2] * 70, [float("inf")], [float("nan"), 3],
    [1e300, 1e300],
]  # fmt: skip
PLACES = [
    None, 24, "0,24", {}, [], [0], [24], [0, 24, 24], [0.0, 24.0], ["0", "24"], [False, 24], [0, True], [-24, 0],
    [-1, 23], [0, 23], [0, 25], [1, 25], [24, 0], [12, 36], [24, 48], [36, 60], [1000, 1024], [0, 1 << 63],
    [(1 << 63) - 24, 1 << 63], [(1 << 64) - 24, 1 << 64], [10**30, 10**30 + 24], [None, None], [[0, 24], [0, 24]],
    [float("nan"), 24],
]  # fmt: skip
TYPES = [
    None, 32, True, [], {}, "", "f32", "F32 ", "F32\0", "F31", "F64", "F16", "BF16", "U8", "F4", "F6_E2M3", "F8_E8M0",
    "C64", "O", "object", "<f4", "torch.float32", "F" * 1_000_000, "\u202eF32", "F32\n", ["F32"],
]  # fmt: skip
NAMES = [
    "", "a\nb", "a\rb", "a\0b", "\x1b[2J\x1b[31mred", "\u202eevil", "\ud800", "a" * 501, "a" * 3_000_000, "\u2028",
    "\t", "\x7f",
]  # fmt: skip
METADATA = [1, "pt", [], [["format", "pt"]], True, 1.5]
HEADERS = [
    b"[]", b"null", b"true", b"1", b'"a"', b"NaN", b"{", b"}", b"{]", b'{"a"}', b'{"a":}', b'{"a":1,}', b"{'a':1}",
    b"{} {}", b'{"a":null}', b'{"a":[]}', b'{"a":{}}', b'{"a":1}', b'{"a":"b"}', b'{"a":NaN}', b'{"a":-Infinity}',
    b'{"\xff":1}', b'{"\xed\xa0\x80":1}', b'{"a\x00":1}', b'\xef\xbb\xbf{"a":1}', b'{"a":1}\0\0', b"{/**/}",
    b'{"a":0x10}', b'{"a":01}', b'{"a":1e99999}', b'{"a":' + b"9" * 5000 + b"}", b'{"__proto__":{"polluted":1}}',
    '{"a":1}'.encode("utf-16"),
]  # fmt: skip


def headers() -> Iterator[tuple[str, Hostile]]:
    for field, values in (("shape", SIZES), ("data_offsets", PLACES), ("dtype", TYPES)):
        for number, value in enumerate(values):
            yield f"{field}-{number}", changed(**{field: value})
        entry = {key: value for key, value in GOOD_HEADER["visual.proj"].items() if key != field}
        yield f"without-{field}", one(safetensors(GOOD_HEADER | {"visual.proj": entry}))
    yield "more-fields", changed(strides=[1, 2])
    for number, name in enumerate(NAMES):
        entry = {"dtype": "F32", "shape": [], "data_offsets": [36, 40]}
        yield f"name-{number}", one(safetensors(GOOD_HEADER | {name: entry}, DATA + bytes(4)))
    for number, value in enumerate(METADATA):
        yield f"metadata-{number}", one(safetensors(GOOD_HEADER | {"__metadata__": value}))
    for number, text in enumerate(HEADERS):
        yield f"header-{number}", one(safetensors(text, b""))
        yield f"header-{number}-data", one(safetensors(text))


def bombs() -> Iterator[tuple[str, Hostile]]:
    for depth in (100, 10_000, 1_000_000):
        for name, opening in (("lists", b"["), ("objects", b'{"a":'), ("both", b'[{"a":')):
            yield f"deep-{name}-{depth}", one(safetensors(b'{"a":' + opening * depth))
            closing = b"".join({b"[": b"]", b"{": b"}"}[bytes([c])] for c in reversed(opening) if c in b"[{")
            yield f"closed-{name}-{depth}", one(safetensors(b'{"a":' + opening * depth + b"1" + closing * depth + b"}"))
    deep = b"[" * 900 + b"]" * 900
    yield "deep-shape", one(safetensors(b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}' % deep))
    yield "many-lists", one(safetensors(b'{"a":[' + b"[]," * 1_300_000 + b"1]}"))
    yield "many-objects", one(safetensors(b'{"a":[' + b"{}," * 1_300_000 + b"1]}"))
    yield "many-numbers", one(safetensors(b'{"a":[' + b"1," * 2_000_000 + b"1]}"))
    yield "long-numbers", one(safetensors(b'{"a":[' + (b"9" * 4300 + b",") * 900 + b"1]}"))
    yield "many-keys", one(safetensors(b"{" + b",".join(b'"%x":1' % n for n in range(300_000)) + b"}"))
    yield "same-keys", one(safetensors(b"{" + b'"a":1,' * 600_000 + b'"a":1}'))
    yield "escapes", one(safetensors(b'{"' + b"\\u0041" * 600_000 + b'":1}'))
    yield "spaces", one(safetensors(b"{" + b" " * 4_000_000))
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {f"{n:x}": empty for n in range(50_000)}
    yield "many-empty", one(safetensors(many | {"last": empty | {"shape": [1]}}))


def arrangements() -> Iterator[tuple[str, Hostile]]:
    def four(*places: tuple[int, int], data: int = 36) -> Hostile:
        entries = {
            f"t{n}": {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
            for n, (start, end) in enumerate(places)
        }
        return one(safetensors(entries, bytes(data)))

    yield "same-place", four((0, 36), (0, 36))
    yield "inside", four((0, 36), (10, 20))
    yield "overlap", four((0, 20), (19, 36))
    yield "overlap-unordered", four((16, 36), (0, 17))
    yield "gap", four((0, 16), (17, 36))
    yield "gap-first", four((1, 36))
    yield "gap-last", four((0, 35))
    yield "gap-unordered", four((20, 36), (0, 19))
    yield "past-the-end", four((0, 36), (36, 40))
    yield "all-past-the-end", four((36, 72))
    yield "empty-outside", four((0, 36), (40, 40))
    yield "empty-inside", four((0, 36), (20, 20))
    yield "empty-far", four((0, 36), (1 << 62, 1 << 62))
    huge = {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [36, 36]}
    yield "empty-but-huge", one(safetensors(GOOD_HEADER | {"a": huge}))
    text = json.dumps(GOOD_HEADER)
    twice = json.dumps(GOOD_HEADER["visual.proj"])
    yield "name-twice", one(safetensors(text.replace("logit_scale", "visual.proj").encode()))
    yield "name-twice-the-same", one(safetensors(f'{text[:-1]}, "visual.proj": {twice}}}'.encode()))
    yield "name-twice-escaped", one(safetensors(f'{text[:-1]}, "visual.\\u0070roj": {twice}}}'.encode()))
    yield "metadata-twice", one(safetensors(f'{text[:-1]}, "__metadata__": {{}}}}'.encode()))
    for field in ("dtype", "shape", "data_offsets"):
        value = json.dumps(GOOD_HEADER["visual.proj"][field])
        yield (
            f"{field}-twice",
            one(safetensors(text.replace(f'"{field}"', f'"{field}": {value}, "{field}"', 1).encode())),
        )


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def others() -> Iterator[tuple[str, Hostile]]:
    pickles = {f"pickle-{protocol}": pickle.dumps({"a": Touch()}, protocol) for protocol in range(6)}
    torch = {"archive/data.pkl": pickles["pickle-2"], "archive/version": b"3\n", "archive/data/0": bytes(8)}
    contents = pickles | {
        "torch": zipped(torch),
        "torch-cut": zipped(torch)[:-30],
        "torch-old": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickles["pickle-2"],
        "torch-script": zipped(
            torch | {"archive/constants.pkl": b"\x80\x02).", "archive/code/__torch__.py": b"import os"}
        ),
        "zip": zipped({"readme.txt": b"hello"}),
        "zip-empty": zipped({}),
        "html": b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
        "html-spaces": b"\n\n  <html><body>404</body></html>",
        "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 605143316\n",
        "text": b"Entry not found",
        "json-list": b"[1, 2]",
        "json-config": b'{"architectures": ["CLIPModel"], "model_type": "clip"}',
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "gzip": gzip.compress(GOOD, mtime=0),
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'",
        "tar": b"pickle\0".ljust(257, b"\0") + b"ustar\x0000" + bytes(1000),
        "elf": b"\x7fELF\2\1\1" + bytes(60),
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "random": np.random.default_rng(0).bytes(1000),
        "empty": b"",
    }
    for name, content in contents.items():
        for suffix in ("safetensors", "npz", "bin"):
            yield f"{name}.{suffix}", one(content, f"model.{suffix}")
        yield f"{name}-index", one(content, "model.safetensors.index.json")
        yield f"{name}-shard", index({"a": "x.safetensors"}, {"x.safetensors": content})


def index(weight_map: Any, files: dict[str, bytes], **more: Any) -> Hostile:
    text = (
        weight_map if isinstance(weight_map, bytes) else json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    )
    return Hostile({"model.safetensors.index.json": text} | files, **more)


PATHS = [
    "../outside.safetensors", "/etc/passwd", "//etc/passwd", "./x.safetensors", "x/../x.safetensors", "..", ".", "",
    "/", "..\\outside.safetensors", "C:\\x.safetensors", "C:x.safetensors", "x.safetensors:stream", "x.safetensors\0",
    "x\n.safetensors", "file:///etc/passwd", "https://example.com/x.safetensors", "~/x.safetensors",
    "sub/x.safetensors", "x.safetensors/", "\u202ex", "\ud800", "a" * 300, "\u00e9" * 200, None, 1, True, [],
    ["x.safetensors"], {}, "model.safetensors.index.json", "*.safetensors", "X.SAFETENSORS", "x.safetensors ",
    "missing.safetensors", "/dev/zero", "/dev/stdin", "$HOME", "-", "con",
]  # fmt: skip


def shards() -> Iterator[tuple[str, Hostile]]:
    names = [name for name in GOOD_HEADER if name != "__metadata__"]
    sound = {"x.safetensors": GOOD}
    whole = dict.fromkeys(names, "x.safetensors")
    for number, path in enumerate(PATHS):
        yield f"shard-{number}", index(whole | {"logit_scale": path}, sound)
    yield "shard-listed-alone", index({names[0]: "x.safetensors"}, sound)
    yield "tensor-missing", index(whole | {"a": "x.safetensors"}, sound)
    yield "tensor-elsewhere", index(whole | {names[0]: "y.safetensors"}, sound | {"y.safetensors": GOOD})
    yield "shard-cut", index(whole, {"x.safetensors": GOOD[:-1]})
    yield "shard-index", index(whole, {"x.safetensors": json.dumps({"weight_map": whole}).encode()})
    yield "many-missing", index({f"t{n}": f"s{n}.safetensors" for n in range(50_000)}, sound)
    for number, target in enumerate(("/dev/zero", "/dev/null", "/", ".", "x.safetensors", "nowhere", "/proc/self/mem")):
        yield f"link-{number}", index(whole, {}, links={"x.safetensors": target})
    for number, text in enumerate(
        (b"{}", b'{"weight_map":1}', b'{"weight_map":[]}', b'{"weight_map":{}}', b'{"weight_map"')
    ):
        yield f"index-{number}", index(text, sound)
    yield "index-twice", index(b'{"weight_map":{"logit_scale":"x.safetensors","logit_scale":"x.safetensors"}}', sound)
    yield "index-deep", index(b'{"weight_map":' * 100_000, sound)
    yield "index-name", index(whole | {"a\x1b[2J": "x.safetensors"}, sound)
    yield "index-hole", index(b'{"weight_map":{', sound, hole=1 << 29)


def flipped(source: bytes, count: int) -> Iterator[bytes]:
    """A file with a few bytes changed, which it may survive."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        content = bytearray(source)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] ^= rng.integers(1, 256)
        yield bytes(content)


def flips() -> Iterator[tuple[str, Hostile]]:
    for number, header in enumerate(flipped(GOOD[: -len(DATA)], 200)):
        yield f"flip-{number}", one(header + DATA, refused=False)


def hostile() -> Iterator[tuple[str, Hostile]]:
    """All of them, each with a name of its own."""
    for family in (lengths, headers, bombs, arrangements, others, shards, flips):
        yield from family()
