"""Batches of random numbers for any method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.inputs import shapes
from jaxclip.methods import Method


def drawn_batch(method: Method, count: int, most: int = 6) -> dict[str, jax.Array]:
    """The inputs of `count` records: images of noise, and ids and positions below `most`."""
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.integers(0, 256 if array.dtype == np.uint8 else most, array.shape), array.dtype)
        for name, array in shapes(method.inputs(), count).items()
    }
