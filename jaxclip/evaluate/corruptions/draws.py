"""Random numbers by a hash of a counter, the same for an image on every device and in every batch.

The hash is PCG's output function RXS-M-XS of 32 bits (O'Neill 2014; recommended for such use by Jarzynski and Olano
2020, "Hash Functions for GPU Rendering"). On a CPU, jax's Threefry takes 3 s to compile at every place where it is
called and 30 times as long to run, and its faster generators depend on the batch.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

Key = UInt32[Array, "2"]


def key(seed: Int[Array, ""]) -> Key:
    """The key of a seed."""
    return fold(jnp.asarray((0x9E3779B9, 0x85EBCA6B), jnp.uint32), seed)


def fold(key: Key, number: int | Int[Array, ""]) -> Key:
    """A further key for each number."""
    return _hashed(key + _hashed(jnp.asarray(number).astype(jnp.uint32)))


def uniform(key: Key, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0) -> Float[Array, "..."]:
    """Numbers between `low` and `high`, which are not among them."""
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    # Two rounds: after one, the numbers of all keys would be parts of one sequence.
    bits = _hashed(_hashed(counter ^ key[0]) + key[1])
    # In the middle of 2 ** 23 intervals, which float32 has exactly.
    between = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return (low + (high - low) * between).reshape(shape)


def normal(key: Key, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Numbers of mean 0 and deviation 1; none exceeds 5.3."""
    return math.sqrt(2) * jax.lax.erf_inv(uniform(key, shape, -1.0, 1.0))


def _hashed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    state = x * jnp.uint32(747796405) + jnp.uint32(2891336453)
    word = ((state >> ((state >> 28) + 4)) ^ state) * jnp.uint32(277803737)
    return (word >> 22) ^ word
