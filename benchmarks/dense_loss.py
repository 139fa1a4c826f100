"""Dense contrastive losses: the whole similarity matrix with automatic differentiation, as it is usually written."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dense_softmax(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
    """CLIP's loss of global arrays [batch, width], with automatic partitioning of the matrix and float32 logits."""
    logits = scale * jnp.matmul(images, texts.T, precision="highest", preferred_element_type=jnp.float32)
    positive = jnp.diagonal(logits)
    return jnp.mean((jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)) / 2 - positive)


def dense_sigmoid(images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """SigLIP's loss (Zhai et al. 2023, algorithm 1), likewise."""
    logits = scale * jnp.matmul(images, texts.T, precision="highest", preferred_element_type=jnp.float32) + bias
    signs = 2 * jnp.eye(len(images)) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / len(images)
