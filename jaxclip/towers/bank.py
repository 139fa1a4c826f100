"""A bank with a vector of every record (Wu et al. 2018, section 3.3; PIRL, Misra and van der Maaten 2020, section 2.2).

It belongs to a method's memory; see `methods.Method.memory`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxclip.towers.layers import normal, unit

# Rows are a multiple of it, so that meshes of up to as many devices, a power of two, divide them.
_ROWS = 1024


class Bank(nnx.Module):
    """A moving average of each record's embeddings, random unit vectors at first.

    Each device holds its own rows. What is read or written is exchanged between the devices, [ids, width], and never
    the bank: each device contributes the rows that it has, and the sum over devices has all.

    Args:
      records: how many there are.
      width: of a vector.

    Attributes:
      bank: [records, width], filled up to a multiple of 1,024 rows, sharded by rows over all devices.
      records: as given.

    >>> bank = Bank(3, 2, rngs=nnx.Rngs(params=0))
    >>> bank.bank[...] = jnp.zeros_like(bank.bank[...]).at[1].set(jnp.array([1.0, 0.0]))
    >>> bank.update(jnp.array([1]), jnp.array([[0.0, 1.0]]), momentum=0.5)
    >>> bank.read(jnp.array([1])).round(3).tolist()
    [[0.7070000171661377, 0.7070000171661377]]
    """

    def __init__(self, records: int, width: int, *, rngs: nnx.Rngs):
        rows = -(-records // _ROWS) * _ROWS
        self.records = records
        self.bank = nnx.Variable(unit(normal(1.0)(rngs.params(), (rows, width))))

    def read(self, ids: Int[Array, "ids"]) -> Float[Array, "ids width"]:
        """The vectors of some records, without gradient; numbers from 0 to records - 1."""
        return jax.lax.stop_gradient(self.bank[...][ids])

    def draw(self, key: Key[Array, ""], count: int) -> Int[Array, "{count}"]:
        """Numbers of records drawn at random, each as probable as the others; some may be drawn twice."""
        return jax.random.randint(key, (count,), 0, self.records)

    def update(self, ids: Int[Array, "batch"], vectors: Float[Array, "batch width"], momentum: float) -> None:
        """Moves records to unit(momentum * old + (1 - momentum) * new). A record that is there twice has its first row.

        Args:
          ids: numbers of the records.
          vectors: unit embeddings of them.
          momentum: weight of the old vectors.
        """
        vectors = jax.lax.stop_gradient(vectors).astype(self.bank[...].dtype)
        moved = unit(momentum * self.read(ids) + (1 - momentum) * vectors)
        # Which of several writes to a row counts would not be defined.
        is_first = jnp.argmax(ids[:, None] == ids, axis=1) == jnp.arange(len(ids))
        places = jnp.where(is_first, ids, len(self.bank[...]))
        self.bank.set_value(self.bank[...].at[places].set(moved, mode="drop"))
