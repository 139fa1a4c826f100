"""The cross-entropy over a vocabulary compiled for a TPU, at a size whose logits do not fit into its memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.losses.captioning import vocabulary_cross_entropy
from jaxclip.plan.chips import topology

pytestmark = pytest.mark.tpu_compile

ROWS, TOKENS, WIDTH, WORDS = 256, 64, 768, 262_144


def test_temporaries_are_a_small_part_of_the_logits():
    mesh = sharding.create(MeshConfig(), topology("v5e:2x4").devices[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    given = {(ROWS, TOKENS, WIDTH): jnp.bfloat16, (WORDS, WIDTH): jnp.float32, (WORDS,): jnp.float32}
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape, dtype in given.items()]
    targets = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32, sharding=whole)

    def total(states: jax.Array, table: jax.Array, bias: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(vocabulary_cross_entropy(states, table, bias, targets))

    gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)), out_shardings=whole)
    memory = gradients.lower(*arrays, targets).compile().memory_analysis()
    temporaries = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - memory.output_size_in_bytes
    logits = 4 * ROWS * TOKENS * WORDS
    assert temporaries < 0.03 * logits
