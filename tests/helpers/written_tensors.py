"""Arrays of any bits, and files of them as jaxclip writes them."""

from __future__ import annotations

import pathlib

import numpy as np

from jaxclip.weights.formats.safetensors_writer import write_tensors

SHAPES = [(), (1,), (0, 3), (3, 0), (7,), (2, 3, 5)]


def values(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Any bits at all, NaNs and subnormals among them; of a bool only the two."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    count = int(np.prod(shape, dtype=int))
    bits = rng.integers(0, 2 if dtype.kind == "b" else 256, count * dtype.itemsize, np.uint8)
    return bits.view(dtype).reshape(shape)


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray], **more) -> pathlib.Path:
    """Writes arrays by name into files of a folder."""
    return write_tensors(folder, "model", [(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()], **more)
