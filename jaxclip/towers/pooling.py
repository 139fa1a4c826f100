"""Attention pooling of image tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.towers.attention import attend
from jaxclip.towers.layers import LayerNorm, activate, linear, normal, zeros
from jaxclip.towers.transformer import BlockConfig, BlockInit


class MapHead(nnx.Module):
    """Multihead attention pooling: one learned query over all tokens, then an MLP with its residual.

    Scaling Vision Transformers (Zhai et al. 2022, section 3.3); google-research/big_vision, models/vit.py `MAPHead`.

    Args:
      config: of the tower's blocks, whose heads, MLP and normalization it has.
      init: of its matrices.

    >>> from jaxclip.towers.transformer import published_image_init
    >>> head = MapHead(BlockConfig(width=64, heads=2), published_image_init(64, 256), rngs=nnx.Rngs(params=0))
    >>> head(jnp.zeros((2, 9, 64))).shape
    (2, 64)
    """

    def __init__(self, config: BlockConfig, init: BlockInit, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        self.config = config
        self.probe = nnx.Param(normal(width**-0.5)(rngs.params(), (width,)))
        self.qkv_kernel = nnx.Param(init.qkv(rngs.params(), (width, 3 * width)))
        self.qkv_bias = nnx.Param(zeros(rngs.params(), (3 * width,)))
        self.attention_out_kernel = nnx.Param(init.attention_out(rngs.params(), (width, width)))
        self.attention_out_bias = nnx.Param(zeros(rngs.params(), (width,)))
        self.ln = LayerNorm(width, config.eps)
        self.mlp_in_kernel = nnx.Param(init.mlp_in(rngs.params(), (width, hidden)))
        self.mlp_in_bias = nnx.Param(init.mlp_in_bias(rngs.params(), (hidden,)))
        self.mlp_out_kernel = nnx.Param(init.mlp_out(rngs.params(), (hidden, width)))
        self.mlp_out_bias = nnx.Param(init.mlp_out_bias(rngs.params(), (width,)))

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """One state for all tokens of an image."""
        width = x.shape[-1]
        kernel, bias = self.qkv_kernel[...], self.qkv_bias[...]
        q = linear(self.probe[...].astype(x.dtype)[None], kernel[:, :width], bias[:width])
        k, v = jnp.split(linear(x, kernel[:, width:], bias[width:]), 2, axis=-1)
        q = jnp.broadcast_to(q, (x.shape[0], 1, width))
        pooled = attend(q, k, v, self.config.heads)[:, 0]
        pooled = linear(pooled, self.attention_out_kernel[...], self.attention_out_bias[...])
        hidden: jax.Array = linear(self.ln(pooled), self.mlp_in_kernel[...], self.mlp_in_bias[...])
        hidden = activate(hidden, self.config.activation)
        return pooled + linear(hidden, self.mlp_out_kernel[...], self.mlp_out_bias[...])
