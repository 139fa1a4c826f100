"""Writer of safetensors files that holds one tensor in memory at a time.

The safetensors library's own save needs all of them at once. The files satisfy what the library checks on reading: a
header in JSON padded with spaces to a multiple of eight bytes, and the values without gaps, those of the widest types
first, so that the offset of each is a multiple of its width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from jaxclip.errors import UserError
from jaxclip.io import atomic_write
from jaxclip.weights.formats.safetensors import DTYPES

LIMIT = 5 << 30  # bytes of values in a file

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: pathlib.Path,
    stem: str,
    tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]],
    limit: int = LIMIT,
    metadata: dict[str, str] | None = None,
) -> pathlib.Path:
    """Writes {stem}.safetensors, or if it would be too large, shards and their index in Hugging Face's format.

    Shards are {stem}-00001-of-0000N.safetensors, with the tensors in the order given; {stem}.safetensors.index.json
    contains the shard of each tensor. The files get their names when all of them are complete, the index last; if
    writing fails, none is left.

    Args:
      folder: the folder, created if it does not exist.
      stem: the stem of the names, "model" or "open_clip_model".
      tensors: (name, shape, dtype, function without arguments that returns the values), with types in `DTYPES`.
      limit: the maximum bytes of values in a file, unless a single tensor has more.
      metadata: for the header of every file, in addition to {"format": "pt"}, which transformers requires.

    Returns:
      The file to open: that of the tensors, or the index.

    Raises:
      UserError: weights of that name already exist, or the disk is full or not writable.
      ValueError: a name occurs twice, or values do not have their declared shape or type.
    """
    shards = _shards(
        [_Tensor(name, tuple(shape), np.dtype(dtype), read) for name, shape, dtype, read in tensors], limit
    )
    count = len(shards)
    numbered = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    contents = dict(zip(numbered if count > 1 else [f"{stem}.safetensors"], shards, strict=True))
    index = folder / f"{stem}.safetensors.index.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A program that loads the folder could open either of the two.
        there = [*folder.glob(f"{stem}.safetensors*"), *folder.glob(f"{stem}-*-of-*.safetensors")]
        if there:
            raise UserError(f"{there[0]} exists; name another folder, or remove the weights in this one")
        with contextlib.ExitStack() as files:  # closed in reverse order, so that the index gets its name last
            if count > 1:
                _write(files.enter_context(atomic_write(index)), [_index(contents)])
            for name, shard in contents.items():
                parts = _parts(shard, {"format": "pt"} | (metadata or {}))
                _write(files.enter_context(atomic_write(folder / name)), parts)
    except OSError as error:
        raise UserError(f"cannot write {folder / stem}: {error.strerror}; make room or name another folder") from None
    return index if count > 1 else folder / next(iter(contents))


def _shards(tensors: Sequence[_Tensor], limit: int) -> list[list[_Tensor]]:
    """Divides tensors into as few files as their order and the limit allow. Raises ValueError for invalid names."""
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names) or "__metadata__" in names or not names:
        raise ValueError("every tensor needs a name of its own, which is not __metadata__, and there has to be one")
    shards: list[list[_Tensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.size > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.size
    return shards


def _parts(tensors: Sequence[_Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The content of a file: its header, then one tensor after the other."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in ordered:
        yield _values(tensor)


def _values(tensor: _Tensor) -> memoryview:
    values = np.asarray(tensor.read())
    if values.shape != tensor.shape or values.dtype != tensor.dtype:
        raise ValueError(f"{tensor.name} is {values.dtype}{values.shape} and not {tensor.dtype}{tensor.shape}")
    # Arrays of ml_dtypes' types do not support the buffer protocol, but their bytes do.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _index(contents: dict[str, list[_Tensor]]) -> bytes:
    """Hugging Face's index of shards."""
    tensors = [(tensor, name) for name, shard in contents.items() for tensor in shard]
    index = {
        "metadata": {"total_size": sum(tensor.size for tensor, _ in tensors)},
        "weight_map": {tensor.name: name for tensor, name in tensors},
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def _write(file: BinaryIO, parts: Iterable[bytes | memoryview]) -> None:
    """Writes the parts and syncs them to disk."""
    for part in parts:
        file.write(part)
        del part  # before the next one is made
    file.flush()
    os.fsync(file.fileno())
