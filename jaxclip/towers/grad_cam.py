"""Grad-CAM of cross-attention: which tokens of the context made a score what it is (Selvaraju et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxclip.context import Context
from jaxclip.towers.transformer import Transformer


def grad_cam(
    transformer: Transformer,
    layer: int,
    score: Callable[[jax.Array], jax.Array],
    states: Float[Array, "batch tokens width"],
    mask: Bool[Array, "batch tokens"],
    context: Float[Array, "batch context context_width"],
    ctx: Context = Context(),
) -> Float[Array, "batch tokens context"]:
    """The cross-attention weights of a layer times the positive part of the score's derivative by them.

    As ALBEF computes it (Li et al. 2021, section 6.1 and figure 4): the mean over the heads.

    Args:
      transformer: blocks with cross-attention.
      layer: of the weights, from 0.
      score: from the states that the transformer gives to [batch], each from its own row.
      states, mask, context, ctx: as the transformer takes them.
    """
    graph, stacked = nnx.split(transformer.blocks)

    def scored(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, seen = states, offset

        def watched(weights: jax.Array) -> jax.Array:
            nonlocal seen
            seen = weights
            return weights + offset

        for number in range(transformer.layers):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, number=number: leaf[number], stacked))
            change = {"change_cross": watched} if number == layer else {}
            x = block(x, ctx, mask=mask, context=context, **change)
        return jnp.sum(score(x)), seen

    heads = transformer.blocks.config.heads
    offset = jnp.zeros((len(states), heads, states.shape[1], context.shape[1]), context.dtype)
    gradient, weights = jax.grad(scored, has_aux=True)(offset)
    return jnp.mean(weights.astype(jnp.float32) * jax.nn.relu(gradient.astype(jnp.float32)), axis=1)
