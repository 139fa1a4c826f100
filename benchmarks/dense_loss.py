"""The contrastive loss as it is usually written: the whole similarity matrix, and automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dense_softmax(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
    """CLIP's loss of global arrays [batch, width], their matrix left to the partitioner; float32 logits."""
    logits = scale * jnp.matmul(images, texts.T, precision="highest", preferred_element_type=jnp.float32)
    positive = jnp.diagonal(logits)
    return jnp.mean((jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)) / 2 - positive)
