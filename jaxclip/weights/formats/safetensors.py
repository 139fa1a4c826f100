"""Reader of safetensors files, sharded safetensors and npz files, none of which can contain code.

The format (https://github.com/huggingface/safetensors, "Format") is the length of a header in 8 bytes, the header in
JSON, and the values. The safetensors library reads and checks the header. The values are views of the mapped file,
because the library would copy them, and does not support 8-bit floats for NumPy.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pathlib
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors

from jaxclip.errors import UserError
from jaxclip.io import first_few, printable
from jaxclip.weights.formats import npz
from jaxclip.weights.formats.mapped import COPY_AGAIN, MOST_DIMENSIONS, Mapped, archived, map_file, pytorch

# Types of the format that consist of whole bytes; it also has some of 4 and 6 bits.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}

_MOST_HEADER = 8 << 20  # bytes of a header or an index; 1,500 tensors take a quarter of a million
_LONGEST_NAME = 500
_TORCH_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# The first bytes of compressed files other than zip, which .npz files are.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_ACCEPTED = "accepted are .safetensors, model.safetensors.index.json with its shards beside it, and .npz"


class Stored(Protocol):
    """A tensor in a file, read on request."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype:
        """A type of numpy or ml_dtypes (bfloat16, float8)."""

    def read(self) -> np.ndarray:
        """The values; a read-only view of the mapped file if they have the same form there.

        Raises UserError if they are compressed and damaged.
        """


def open_tensors(path: pathlib.Path) -> dict[str, Stored]:
    """The tensors of a file by name.

    The format is detected from the content, not from the name. No values are read. The declared types, shapes and
    offsets are checked against the size of the file.

    Args:
      path: a .safetensors file, the model.safetensors.index.json of a sharded one, or an .npz.

    Raises:
      UserError: the file does not exist, is damaged, contains no tensors, or has another format.
    """
    content = map_file(path)
    if content[:4] in npz.MAGIC:
        return dict(npz.open_npz(path, content))
    # The length of a header contains zero bytes, and text does not.
    if content[:512].lstrip()[:1] == b"{" and b"\0" not in content[:8]:
        return _open_shards(path, content)
    return dict(_open_safetensors(path, content))


def _open_safetensors(path: pathlib.Path, content: mmap.mmap) -> dict[str, Mapped]:
    _refuse_others(path, content)
    start = 8 + int.from_bytes(content[:8], "little")
    # The library accepts 100 MB of JSON, which take gigabytes once parsed.
    if start > _MOST_HEADER:
        raise UserError(f"{path} has a header of {start:,} bytes, which is no model's; {COPY_AGAIN}")
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            # The library has checked that the tensors fill the file, in this order and without gaps.
            for name in file.offset_keys():
                _check_name(name)
                entry = file.get_slice(name)
                shape, kind = tuple(entry.get_shape()), entry.get_dtype()
                if kind not in DTYPES:
                    raise UserError(
                        f"{path} holds {name} as {kind}, which is not read; take the model in F32, F16 or BF16"
                    )
                if len(shape) > MOST_DIMENSIONS or math.prod(size or 1 for size in shape) >= 1 << 59:
                    raise ValueError(f"{name} has the shape {printable(str(shape), 80)}")
                tensors[name] = Mapped(content, start, shape, DTYPES[kind])
                start += math.prod(shape) * DTYPES[kind].itemsize
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {printable(str(error), 200)}; {COPY_AGAIN}") from None
    if not tensors or start != len(content):
        raise UserError(f"{path} holds no tensors, or changed while it was opened; {COPY_AGAIN}")
    return tensors


def _refuse_others(path: pathlib.Path, content: mmap.mmap) -> None:
    """Raises UserError, with advice, for content that cannot be a safetensors file."""
    # A header is a JSON object, and its length contains zero bytes.
    if content[8:9] == b"{" and content[5:8] == bytes(3):
        return
    text = content[:512].lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is git-lfs's pointer to a file, not the file; run git lfs pull in its folder")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page; {COPY_AGAIN}, from the address of the file itself")
    is_pickle = content[:1] == b"\x80" and content[1:2] in (b"\1", b"\2", b"\3", b"\4", b"\5")
    if content[:4] in npz.MAGIC:
        npz.open_npz(path, content)
    elif is_pickle or path.suffix.lower() in _TORCH_SUFFIXES:
        raise pytorch(path)
    if content[257:262] == b"ustar":  # after the name and other properties of the first member
        raise archived(path, "a tar archive")
    for mark, kind in _COMPRESSED.items():
        if content[: len(mark)] == mark:
            raise archived(path, f"compressed by {kind}")
    raise UserError(f"{path} is not a file of weights; {_ACCEPTED}")


def _open_shards(path: pathlib.Path, content: mmap.mmap) -> dict[str, Stored]:
    """The tensors of a sharded model, from Hugging Face's index {"weight_map": {tensor: file}}."""
    if len(content) > _MOST_HEADER:
        raise UserError(f"{path} is text of more than {_MOST_HEADER:,} bytes, no index of shards; {_ACCEPTED}")
    try:
        listed = _weight_map(json.loads(content[:]))
    except (ValueError, RecursionError) as error:
        reason = printable(str(error), 200)
        raise UserError(f"{path} is not an index of shards: {reason}; {_ACCEPTED}") from None
    names = sorted(set(listed.values()))
    # A name cannot refer to a file outside the folder, but the file may be a link. Links are trusted: the owner of the
    # folder created them, and Hugging Face's cache consists of links to ../../blobs.
    shards = {name: path.parent / name for name in names}
    missing = [name for name in names if not os.path.exists(shards[name])]
    if missing:
        raise UserError(
            f"{path} lists {len(missing)} of {len(names)} shards that are not beside it: {first_few(missing)}; get them"
        )
    tensors = {name: _open_safetensors(shard, map_file(shard)) for name, shard in shards.items()}
    absent = [f"{name} ({shard})" for name, shard in listed.items() if name not in tensors[shard]]
    extra = [f"{name} ({shard})" for shard in names for name in tensors[shard] if listed.get(name) != shard]
    wrong = [
        *([f"tensors that are not in the shards it names for them: {first_few(absent)}"] if absent else []),
        *([f"tensors in its shards that it does not list there: {first_few(extra)}"] if extra else []),
    ]
    if wrong:
        raise UserError(f"{path} does not fit its shards: {'; '.join(wrong)}; take index and shards of one model")
    return {name: tensors[shard][name] for name, shard in listed.items()}


def _weight_map(index: Any) -> dict[str, str]:
    """The file of each tensor. Raises ValueError for anything but names of files in the index's own folder."""
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ValueError("no weight_map in it")
    for name, shard in listed.items():
        _check_name(name)
        if (
            not isinstance(shard, str)
            or shard in ("", ".", "..")
            or set(shard) & set("/\\:")
            or not shard.isprintable()
        ):
            raise ValueError(f"{printable(str(shard), 80)!r}, said to hold {name}, is not the name of a file beside it")
    return listed


def _check_name(name: str) -> None:
    """Raises ValueError for text that is unprintable or cannot be the name of a parameter."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{printable(name, 80)!r} is not the name of a tensor")
