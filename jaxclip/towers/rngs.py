"""Random keys of an initialization, as flax's `nnx.Rngs` gives them, at less cost while a program is traced."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx


class Rngs(nnx.Rngs):
    """The same keys as those of `nnx.Rngs(params=key)`, bit for bit.

    flax counts the draws in an array. In a traced program that is another operation per draw, and flax then asks the
    traced count for its sharding: the answer is an error message that lists all operations so far, so that tracing
    takes time by the square of the number of parameters.

    Args:
      key: a key, or a seed of one.

    >>> keys, expected = Rngs(0), nnx.Rngs(params=0)
    >>> all(keys.params() == expected.params() for _ in range(3))
    True
    """

    def __init__(self, key: jax.Array | int):
        super().__init__(params=key)
        self.params = _Stream(key, tag="params")


class _Stream(nnx.RngStream):
    """Counts its draws as a Python number."""

    def __init__(self, key: jax.Array | int, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], np.uint32(self.drawn))
        self.drawn += 1
        return key
