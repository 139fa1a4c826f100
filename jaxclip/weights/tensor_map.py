"""Bidirectional mapping between the tensors of third-party files and jaxclip's arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxclip.errors import UserError
from jaxclip.io import first_few
from jaxclip.weights.formats.safetensors import Stored

_MOST = 1 << 40  # numbers in an array: 4 TB, more than in any file


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axis orders of a tensor in a file and here, as two inverse functions, which avoid copies if possible.

    Attributes:
      to_ours: converts the tensor as stored to the part of our array.
      to_theirs: the inverse.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
# torch.nn.Linear: [outputs, inputs].
LINEAR = Layout(np.transpose, np.transpose)
# torch.nn.Conv2d: [outputs, inputs, height, width]; ours [height, width, inputs, outputs].
CONVOLUTION = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# A leading axis of length 1 that our array does not have.
ONE_ROW = Layout(lambda x: x[0], lambda x: x[None])
TWO_ROWS = Layout(lambda x: x[0, 0], lambda x: x[None, None])


def _square_patch(x: np.ndarray) -> np.ndarray:
    patch = math.isqrt(x.shape[0] // 3)
    return x.reshape(patch, patch, 3, x.shape[1])


# A convolution over patches: ours is one matrix, [height * width * 3, outputs].
PATCHES = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), lambda x: _square_patch(x).transpose(3, 2, 0, 1)
)
# The same in flax.linen: [height, width, 3, outputs].
FLAX_PATCHES = Layout(lambda x: x.reshape(-1, x.shape[3]), _square_patch)


@dataclasses.dataclass(frozen=True)
class Piece:
    """The place of one tensor of a third-party file in our arrays.

    Attributes:
      name: the tensor's name.
      path: the path of our array, such as "image/transformer/blocks/qkv_kernel".
      where: the index of the part of that array that equals the tensor; () for the whole array.
      layout: the conversion between the tensor and that part.
    """

    name: str
    path: str
    where: tuple[int | slice, ...] = ()
    layout: Layout = SAME

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the shape of our array."""
        return self.layout.to_theirs(np.broadcast_to(np.float32(0), ours)[self.where]).shape


def linear(theirs: str, ours: str, where: tuple[int | slice, ...] = ()) -> list[Piece]:
    """The pieces of a torch.nn.Linear, whose kernel and bias are `ours`_kernel and `ours`_bias."""
    return [
        Piece(f"{theirs}.weight", f"{ours}_kernel", where, LINEAR),
        Piece(f"{theirs}.bias", f"{ours}_bias", where),
    ]


def layer_norm(theirs: str, ours: str, where: tuple[int | slice, ...] = ()) -> list[Piece]:
    """The pieces of a torch.nn.LayerNorm."""
    return [Piece(f"{theirs}.weight", f"{ours}/scale", where), Piece(f"{theirs}.bias", f"{ours}/bias", where)]


def check(
    source: str, tensors: Mapping[str, Stored], pieces: Iterable[Piece], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks that a file has exactly the required tensors, with the right shapes.

    Args:
      source: the name of the file, for the message.
      tensors: the file's tensors, without those that no model uses.
      pieces: the required tensors.
      shapes: the shapes of our arrays, by path.

    Raises:
      UserError: one message lists tensors that are missing, unexpected, of a wrong shape, or not numeric.
    """
    for path, shape in shapes.items():
        if math.prod(shape) > _MOST:
            raise UserError(f"{source}: it says {path} is {_shape(shape)}, which no file holds")
    expected = {piece.name: piece.shape(shapes[piece.path]) for piece in pieces}
    faults = []
    if missing := [name for name in expected if name not in tensors]:
        faults.append(f"{len(missing)} missing ({first_few(missing)})")
    if extra := [name for name in tensors if name not in expected]:
        faults.append(f"{len(extra)} too many ({first_few(extra)})")
    shared = [name for name in expected if name in tensors]
    wrong = [
        f"{name} {_shape(tensors[name].shape)} instead of {_shape(expected[name])}"
        for name in shared
        # A scalar may be stored as a vector of length 1.
        if tensors[name].shape != expected[name] and (tensors[name].shape, expected[name]) != ((1,), ())
    ]
    if wrong:
        faults.append(f"{len(wrong)} of another shape ({first_few(wrong)})")
    strange = [f"{name} {tensors[name].dtype}" for name in shared if not _is_float(tensors[name].dtype)]
    if strange:
        faults.append(f"{len(strange)} not of floating-point numbers ({first_few(strange)})")
    if faults:
        raise UserError(f"{source}: its tensors are not those of the model it says it is: {'; '.join(faults)}")


def read(
    tensors: Mapping[str, Stored], pieces: Iterable[Piece], abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Our arrays by path, each transferred to the devices before the next is read.

    Args:
      tensors: a file's tensors, checked by `check`.
      pieces: the pieces that together make up the arrays.
      abstract: shape, dtype and sharding of each array, by path.
    """
    by_path: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_path.setdefault(piece.path, []).append(piece)
    arrays = {}
    for path, leaf in abstract.items():
        values = _aligned(leaf.shape, leaf.dtype)
        for piece in by_path[path]:
            stored = tensors[piece.name].read()
            part = values[piece.where] if piece.where else values
            part[...] = piece.layout.to_ours(stored.reshape(piece.shape(leaf.shape)))
        if leaf.sharding.is_fully_addressable:
            arrays[path] = jax.device_put(values, leaf.sharding, may_alias=True)
        else:
            # Every process reads the whole array and transfers its own part.
            arrays[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, values.__getitem__)
    return arrays


def write(
    arrays: Mapping[str, jax.Array], pieces: Iterable[Piece]
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]:
    """The tensors of a third-party file, in the form required by `safetensors_writer.write_tensors`."""
    for piece in pieces:
        array = arrays[piece.path]

        def values(array: jax.Array = array, piece: Piece = piece) -> np.ndarray:
            return piece.layout.to_theirs(np.asarray(array)[piece.where])

        yield piece.name, piece.shape(array.shape), np.dtype(array.dtype), values


def flat(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by path, such as {"image/positions": leaf}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{where}{key}/") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = leaf
    return tree


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialized array, aligned such that the CPU backend can use its memory without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def _is_float(dtype: np.dtype) -> bool:
    return jax.numpy.issubdtype(dtype, np.floating)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
