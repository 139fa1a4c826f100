"""Weights and inputs as functions of their names, equal here and in the Python of the reference libraries.

Needs only NumPy, whose legacy generator is used because its numbers never change.
"""

from __future__ import annotations

import math
import zlib

import numpy as np


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of that name, float32: every one of its numbers matters, and towers of any depth keep their scale."""
    last = name.rpartition(".")[2]
    if last == "logit_scale":
        return np.full(shape, math.log(1 / 0.07), np.float32)
    if last == "logit_bias":
        return np.full(shape, -10, np.float32)
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    drawn = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape)
    if last == "running_var":
        drawn = 0.5 + drawn
    elif "bn" in name or "downsample.1" in name:
        drawn = 0.75 + 0.5 * drawn if last == "weight" else 0.1 * (drawn - 0.5)
    elif last == "weight" and len(shape) == 1:
        drawn = 0.75 + 0.5 * drawn
    else:
        # x @ proj in CLIP's projections; everywhere else the outputs come first.
        inputs = shape[0] if last in ("proj", "text_projection") else math.prod(shape[1:])
        # Twice the variance before a ReLU, which halves it; biases of a size that drowns no image.
        gain = 2 if len(shape) == 4 else 1
        width = 0.4 if len(shape) < 2 or "embed" in name else math.sqrt(12 * gain / inputs)
        drawn = width * (drawn - 0.5)
    return drawn.astype(np.float32)


def images(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: coarse patterns of many colors, of which no two are alike."""
    random = np.random.RandomState(size)
    coarse = random.randint(0, 256, (count, 8, 8, 3))
    place = np.arange(size) * 8 // size
    fine = random.randint(-20, 21, (count, size, size, 3))
    return np.clip(coarse[:, place][:, :, place] + fine, 0, 255).astype(np.uint8)


def tokens(count: int, context: int, vocabulary: int) -> np.ndarray:
    """int64 [count, context]: a start token, words, an end token which is the largest id, zeros."""
    random = np.random.RandomState(vocabulary)
    rows = np.zeros((count, context), np.int64)
    for row in rows:
        length = random.randint(2, context - 1)
        row[:length] = random.randint(3, vocabulary - 2, length)
        row[0], row[length] = vocabulary - 2, vocabulary - 1
    return rows


def ends(rows: np.ndarray) -> np.ndarray:
    """int32 [count]: where each row's end token is."""
    return rows.argmax(axis=1).astype(np.int32)
