"""The contrastive loss over the global batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax_contrastive(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch width"],
    logit_scale: Float[Array, ""],
    *,
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """CLIP's symmetric softmax loss (Radford et al. 2021, figure 3).

    Every picture is classified among all texts of the global batch and every text among all its pictures; row i of
    one belongs to row i of the other.

    Args:
      image_embeddings: [batch, width], unit length.
      text_embeddings: [batch, width], unit length.
      logit_scale: what cosines are multiplied by (the inverse temperature).
      constrain: pins the sharding of a [batch, ...] array to the devices that hold the batch.

    Returns:
      The loss in nats, and the share of pictures and texts whose own partner is the most similar in the batch.
    """
    # TPUs and GPUs would otherwise round float32 embeddings on their way into the product.
    cosines = jnp.matmul(image_embeddings, text_embeddings.T, precision="highest", preferred_element_type=jnp.float32)
    logits = constrain(logit_scale * cosines)
    positive = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1)
    columns = jax.nn.logsumexp(logits, axis=0)
    loss = jnp.mean((rows + columns) / 2 - positive)
    hits = (positive >= jnp.max(logits, axis=1)).astype(jnp.float32) + (positive >= jnp.max(logits, axis=0))
    return loss, jnp.mean(hits) / 2
