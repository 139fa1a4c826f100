"""Shapes of a method's arrays and of the tensors in its pieces, without weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxclip import methods
from jaxclip.weights import tensor_map
from jaxclip.weights.tensor_map import Piece


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file as far as its header goes."""

    shape: tuple[int, ...]
    dtype: np.dtype = np.dtype("float32")

    def read(self) -> np.ndarray:
        """Only the shape is wanted of it."""
        raise AssertionError("no values are read")


def shapes_of(method: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all of a model's arrays by path; none is made."""
    params, stats = jax.eval_shape(lambda: methods.init_variables(method, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in tensor_map.flat(methods.joined(params, stats)).items()}


def sizes_of(method: Any) -> int:
    """How many numbers a model has."""
    return sum(map(math.prod, shapes_of(method).values()))


def tensors_for(listed: Iterable[Piece], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Just the tensors that are asked for."""
    return {piece.name: Tensor(piece.shape(shapes[piece.path])) for piece in listed}


def assert_covered_once(listed: list[Piece], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every number of every array is in one tensor, and no tensor is asked for twice."""
    assert len({piece.name for piece in listed}) == len(listed)
    assert {piece.path for piece in listed} == set(shapes)
    for path, shape in shapes.items():
        boxes = [_box(piece, shape) for piece in listed if piece.path == path]
        assert sum(math.prod(stop - start for start, stop in box) for box in boxes) == math.prod(shape), path
        for one, other in itertools.combinations(boxes, 2):
            assert any(a[1] <= b[0] or b[1] <= a[0] for a, b in zip(one, other, strict=True)), path


def _box(piece: Piece, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The part of an array that a piece is, as (start, stop) along each axis."""
    box = []
    for axis, size in enumerate(shape):
        index = piece.where[axis] if axis < len(piece.where) else slice(None)
        box.append((index, index + 1) if isinstance(index, int) else index.indices(size)[:2])
        assert 0 <= box[-1][0] < box[-1][1] <= size, piece
    return box
