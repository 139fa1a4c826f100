"""Tensors from files: safetensors, safetensors in shards, and npz, none of which can hold code.

The format (https://github.com/huggingface/safetensors, "Format") is the length of a header in 8 bytes, the header in
JSON, and the values. The header is read here rather than by the safetensors library, which copies what it gives to
NumPy, knows no bfloat16 there, and takes headers of 100 MB, which as Python objects would be gigabytes.
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

from jaxclip.errors import UserError
from jaxclip.weights.formats import npz
from jaxclip.weights.formats.mapped import COPY_AGAIN, MOST_DIMENSIONS, Mapped, map_file, pytorch, some

# Types of the format that memory can hold one by one; it also has some of 4 and 6 bits.
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

_MOST_JSON = 8 << 20  # bytes of a header or an index; 1,500 tensors take a quarter of a million
_LONGEST_NAME = 500
_TORCH_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_ACCEPTED = "accepted are .safetensors, model.safetensors.index.json with its shards beside it, and .npz"


class Stored(Protocol):
    """One tensor in a file, not read yet."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype:
        """A type of numpy or ml_dtypes (bfloat16, float8)."""

    def read(self) -> np.ndarray:
        """The values; a read-only view of the mapped file where they stand in it as they are.

        Raises UserError where they were compressed, and are damaged.
        """


def open_tensors(path: pathlib.Path) -> dict[str, Stored]:
    """The tensors of a file by name, in the file's order.

    What the file is, is told by its content. Nothing of the values is read: everything that the file says of their
    types, shapes and places is checked against its size.

    Args:
      path: a .safetensors file, or the model.safetensors.index.json of one in shards, or an .npz.

    Raises:
      UserError: there is no such file, or it is damaged or holds no tensors, or it is none of these.
    """
    content = map_file(path)
    if content[:4] in npz.MAGIC:
        return dict(npz.open_npz(path, content))
    # A header's length has zeros in front, and text has none.
    if content[:512].lstrip()[:1] == b"{" and b"\0" not in content[:8]:
        return _open_shards(path, content)
    return dict(_open_safetensors(path, content))


def _open_safetensors(path: pathlib.Path, content: mmap.mmap) -> dict[str, Mapped]:
    _refuse_others(path, content)
    length = int.from_bytes(content[:8], "little")
    if length > _MOST_JSON:
        raise UserError(f"{path} gives its header {length:,} bytes, more than {_MOST_JSON:,}; {COPY_AGAIN}")
    if 8 + length > len(content):
        raise UserError(f"{path} is cut short, within its header; {COPY_AGAIN}")
    try:
        return _tensors(path, _json(content[8 : 8 + length]), content, 8 + length)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {COPY_AGAIN}") from None


def _refuse_others(path: pathlib.Path, content: mmap.mmap) -> None:
    """Raises UserError, with what to do, for what cannot be a safetensors file."""
    # A header is an object, and its length has zeros in front.
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
    raise UserError(f"{path} is not a file of weights; {_ACCEPTED}")


def _tensors(path: pathlib.Path, header: Any, content: mmap.mmap, base: int) -> dict[str, Mapped]:
    """The tensors that a header describes, whose values fill the content from `base` on.

    Raises ValueError, with what is wrong; UserError for a type that is not read.
    """
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(header, dict) or not isinstance(metadata, dict | None):
        raise ValueError("its header is no table of tensors")
    if not header:
        raise ValueError("it holds no tensors")
    places = {}
    for name, entry in header.items():
        _check_name(name)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} does not have a dtype, a shape and data_offsets")
        dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            kind = _shown(entry["dtype"])
            raise UserError(f"{path} holds {name} as {kind}, which is not read; take the model in F32, F16 or BF16")
        shape, place = entry["shape"], entry["data_offsets"]
        if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{name} has the shape {_shown(shape)}")
        if not _are_sizes(place) or len(place) != 2:
            raise ValueError(f"{name} has the data_offsets {_shown(place)}")
        # NumPy wants the product of the sizes other than 0 to fit, even where there are no values.
        if math.prod(size or 1 for size in shape) * dtype.itemsize > np.iinfo(np.int64).max:
            raise ValueError(f"{name} has the shape {_shown(shape)}")
        if place[1] - place[0] != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} does not have as many bytes as its shape {_shown(shape)} takes")
        places[name] = (place[0], place[1], tuple(shape), dtype)
    end = 0
    # Empty tensors before the one that begins where they do.
    for name, (start, stop, _, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if start != end:
            raise ValueError(f"{name} {'overlaps' if start < end else 'leaves a gap after'} the tensor before it")
        end = stop
    if base + end != len(content):
        less = base + end > len(content)
        raise ValueError(
            f"it has {len(content):,} bytes, {'less' if less else 'more'} than the {base + end:,} it needs"
        )
    return {name: Mapped(content, base + start, shape, dtype) for name, (start, _, shape, dtype) in places.items()}


def _open_shards(path: pathlib.Path, content: mmap.mmap) -> dict[str, Stored]:
    """The tensors of a model in shards, from Hugging Face's index {"weight_map": {tensor: file}}."""
    if len(content) > _MOST_JSON:
        raise UserError(f"{path} is text of more than {_MOST_JSON:,} bytes, no index of shards; {_ACCEPTED}")
    try:
        listed = _weight_map(_json(content[:]))
    except ValueError as error:
        raise UserError(f"{path} is not an index of shards: {error}; {_ACCEPTED}") from None
    names = sorted(set(listed.values()))
    # A name leads to nothing outside the folder, but the file may be a link: whoever has the folder made it, and
    # Hugging Face's cache has nothing but links, to ../../blobs.
    shards = {name: path.parent / name for name in names}
    missing = [name for name in names if not os.path.exists(shards[name])]
    if missing:
        raise UserError(
            f"{path} lists {len(missing)} of {len(names)} shards that are not beside it: {some(missing)}; get them"
        )
    tensors = {name: _open_safetensors(shard, map_file(shard)) for name, shard in shards.items()}
    absent = [f"{name} ({shard})" for name, shard in listed.items() if name not in tensors[shard]]
    extra = [f"{name} ({shard})" for shard in names for name in tensors[shard] if listed.get(name) != shard]
    wrong = [
        *([f"tensors that are not in the shards it names for them: {some(absent)}"] if absent else []),
        *([f"tensors in its shards that it does not list there: {some(extra)}"] if extra else []),
    ]
    if wrong:
        raise UserError(f"{path} does not fit its shards: {'; '.join(wrong)}; take index and shards of one model")
    return {name: tensors[shard][name] for name, shard in listed.items()}


def _weight_map(index: Any) -> dict[str, str]:
    """Which file each tensor is in. Raises ValueError for anything but names of files in the index's own folder."""
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
            raise ValueError(f"{_shown(shard)}, said to hold {name}, is not the name of a file beside it")
    return listed


def _json(text: bytes) -> Any:
    """JSON, of which no object may give a key twice. Raises ValueError."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_int=_whole, parse_constant=_none)
    except UnicodeDecodeError:
        raise ValueError("its JSON is not text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON is wrong ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("its JSON gives a name twice")
    return content


def _whole(digits: str) -> int:
    # Python takes quadratic time over long ones, or an error of its own.
    if len(digits) > 20:
        raise ValueError(f"its JSON has a number of {len(digits)} digits")
    return int(digits)


def _none(word: str) -> None:
    raise ValueError(f"its JSON has {word} where a number belongs")


def _check_name(name: str) -> None:
    """Raises ValueError for what could not be printed in a message or be the name of a parameter."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{_shown(name)} is not the name of a tensor")


def _are_sizes(values: Any) -> bool:
    # A bool is an int to Python.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _shown(value: Any) -> str:
    """A foreign value in a message: with what cannot be printed escaped, and not long."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown_briefly, value[:8]))}{', ...' if len(value) > 8 else ''}]"
    return _shown_briefly(value)


def _shown_briefly(value: Any) -> str:
    text = json.dumps(value if isinstance(value, str | int | float | None) else type(value).__name__)
    return text if len(text) <= 80 else f"{text[:80]}..."
