"""Momentum copies and queues of their outputs (MoCo, He et al. 2020, section 3.1; ALBEF, Li et al. 2021, section 3.2).

They belong to a method's memory; see `methods.Method.memory`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from jaxclip.errors import UserError
from jaxclip.towers.layers import normal


class Queue(nnx.Module):
    """The keys of the last batches, first in, first out; random unit vectors at first.

    In a ring that a batch is written to in one piece, XLA would gather all of the queue on each device. So the queue is
    seen as [batch, size / batch, width], and the rows of a batch are written to one place of the second axis: each
    device keeps the keys of its own rows, and a push sends nothing but these.

    Args:
      size: how many keys; a multiple of the batch size.
      width: of a key.
      rngs: for the initial keys; None for keys of the number -1 in int32, to which no record number is equal.

    Attributes:
      queue: [size, width], sharded by rows over all devices.
      turn: int32, the place that the next batch is written to.

    >>> queue = Queue(6, 1, rngs=nnx.Rngs(params=0))
    >>> for first in (0, 2, 4, 6):
    ...     queue.push(jnp.array([[first], [first + 1.0]]))
    >>> sorted(queue.queue[...].ravel().tolist())
    [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs | None):
        if rngs is None:
            self.queue = nnx.Variable(jnp.full((size, width), -1, jnp.int32))
        else:
            start = normal(1.0)(rngs.params(), (size, width))
            self.queue = nnx.Variable(start / jnp.linalg.norm(start, axis=1, keepdims=True))
        self.turn = nnx.Variable(jnp.zeros((), jnp.int32))

    def push(self, keys: Shaped[Array, "batch width"]) -> None:
        """Replaces the oldest keys by those of a batch, whose size must be the same in every call.

        Raises:
          UserError: the batch size does not divide the size of the queue.
        """
        queue = self.queue[...]
        if len(queue) % len(keys):
            raise UserError(f"a queue of {len(queue)} keys must be a multiple of the batch of {len(keys)}")
        turns = len(queue) // len(keys)
        by_row = queue.reshape(len(keys), turns, -1)
        keys = jax.lax.stop_gradient(keys).astype(queue.dtype)
        self.queue.set_value(by_row.at[:, self.turn[...]].set(keys).reshape(queue.shape))
        self.turn.set_value((self.turn[...] + 1) % turns)


class Copied(nnx.Module):
    """The memory of a method that has a momentum copy of its model and nothing else."""

    def __init__(self, model: nnx.Module):
        self.slow = nnx.clone(model)


def follow(slow: nnx.Module, fast: nnx.Module, momentum: float | Float[Array, ""], step: Int[Array, ""] | None) -> None:
    """slow = momentum * slow + (1 - momentum) * fast, of all parameters of `slow`, in place and without gradient.

    Args:
      slow: a copy of `fast`, or of a part of it.
      fast: has all parameters of `slow` under the same names, and perhaps others.
      momentum: of the slow one, from 0 to 1.
      step: steps done. The first step copies, so that `slow` starts as `fast` does whatever weights a run starts from.

    >>> from jaxclip.towers.layers import LayerNorm
    >>> slow, fast = LayerNorm(2), LayerNorm(2)
    >>> fast.scale[...] = jnp.array([3.0, 3.0])
    >>> follow(slow, fast, 0.5, step=jnp.array(1))
    >>> slow.scale[...].tolist()
    [2.0, 2.0]
    """
    kept: Any = momentum if step is None else jnp.where(step == 0, 0.0, momentum)
    state = nnx.state(slow, nnx.Param)
    moved = jax.tree.map(
        lambda old, new: (kept * old + (1 - kept) * jax.lax.stop_gradient(new)).astype(old.dtype),
        nnx.to_pure_dict(state),
        _part(nnx.to_pure_dict(nnx.state(fast, nnx.Param)), nnx.to_pure_dict(state)),
    )
    nnx.replace_by_pure_dict(state, moved)
    nnx.update(slow, state)


def _part(tree: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a nested dict that another one has, too."""
    return {key: _part(tree[key], value) if isinstance(value, dict) else tree[key] for key, value in like.items()}
