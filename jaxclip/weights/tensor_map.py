"""Which tensor of a foreign file is which part of one of our arrays, in both directions."""

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

_MOST = 1 << 40  # numbers in an array: 4 TB, more than any file has


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor's axes are ordered there and here; each function undoes the other, both without copying if they can.

    Attributes:
      to_ours: from the tensor as stored to the part of our array.
      to_theirs: back.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
# torch.nn.Linear: [outputs, inputs].
LINEAR = Layout(np.transpose, np.transpose)
# torch.nn.Conv2d: [outputs, inputs, height, width]; ours [height, width, inputs, outputs].
CONVOLUTION = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# A leading axis of length 1 that ours has not.
ONE_ROW = Layout(lambda x: x[0], lambda x: x[None])
TWO_ROWS = Layout(lambda x: x[0, 0], lambda x: x[None, None])


def _square_patch(x: np.ndarray) -> np.ndarray:
    patch = math.isqrt(x.shape[0] // 3)
    return x.reshape(patch, patch, 3, x.shape[1])


# A convolution over patches: ours is one matrix, [height * width * 3, outputs].
PATCHES = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), lambda x: _square_patch(x).transpose(3, 2, 0, 1)
)
# The same as flax.linen stores it: [height, width, 3, outputs].
FLAX_PATCHES = Layout(lambda x: x.reshape(-1, x.shape[3]), _square_patch)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of a foreign file.

    Attributes:
      name: of the tensor.
      path: of our array, such as "image/transformer/blocks/qkv_kernel".
      where: index of the part of that array which the tensor is; () for all of it.
      layout: of the tensor against that part.
    """

    name: str
    path: str
    where: tuple[int | slice, ...] = ()
    layout: Layout = SAME

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, where our array has that one."""
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
    """Checks that a file has the tensors that are asked for, of the right shapes, and no others.

    Args:
      source: what the file is called, for the message.
      tensors: the file's; those that mean nothing to any model are left out already.
      pieces: what is asked for.
      shapes: of our arrays, by path.

    Raises:
      UserError: one message on all that is missing, too much, misshapen or not made of numbers.
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
        # A scalar may have been stored as a vector of one.
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
    """Our arrays, by path, each put on the devices before the next is read.

    Args:
      tensors: a file's, checked.
      pieces: that together make up the arrays.
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
            # Each process puts its own part of what all of them have read.
            arrays[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, values.__getitem__)
    return arrays


def write(
    arrays: Mapping[str, jax.Array], pieces: Iterable[Piece]
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]:
    """The tensors of a foreign file as `writing` takes them: name, shape, dtype, a function that gives the values."""
    for piece in pieces:
        array = arrays[piece.path]

        def values(array: jax.Array = array, piece: Piece = piece) -> np.ndarray:
            return piece.layout.to_theirs(np.asarray(array)[piece.where])

        yield piece.name, piece.shape(array.shape), np.dtype(array.dtype), values


def flat(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """{"image/projection": leaf}: the leaves of nested dicts under their paths."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{where}{key}/") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` made flat."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = leaf
    return tree


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Room for an array at an address that the CPU backend takes over as it is, instead of copying it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def _is_float(dtype: np.dtype) -> bool:
    return jax.numpy.issubdtype(dtype, np.floating)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
