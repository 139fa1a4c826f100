"""CLIP's text transformer (Radford et al. 2021, section 2.4; OpenAI's clip/model.py `encode_text`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxclip.config import check_at_least
from jaxclip.errors import UserError
from jaxclip.towers.layers import LayerNorm, Remat, Transformer, linear, normal, published_text_init


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Attributes:
    vocab_size: rows of the token embedding.
    context_length: tokens of a text, start and end included.
    width, layers, heads: of the transformer.
    scan, remat: how its blocks run, see `layers.Transformer`.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    scan: bool = True
    remat: Remat = "none"

    def __post_init__(self):
        check_at_least(self, 2, "context_length")
        check_at_least(self, 1, "vocab_size", "width", "layers", "heads")
        if self.width % self.heads:
            raise UserError(f"width={self.width} must be a multiple of heads={self.heads}")


class TextTransformer(nnx.Module):
    """Tokens, positions, causal blocks, ln_final, the state at the end token, bias-free projection."""

    def __init__(self, config: TextConfig, embed_dim: int, *, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, width)))
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (config.context_length, width)))
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            published_text_init(width, config.layers),
            scan=config.scan,
            remat=config.remat,
            rngs=rngs,
        )
        self.ln_final = LayerNorm(width)
        self.projection = nnx.Param(normal(width**-0.5)(rngs.params(), (width, embed_dim)))

    def __call__(
        self,
        tokens: Int[Array, "batch context"],
        text_end: Int[Array, "batch"],
        *,
        dtype: DTypeLike = jnp.float32,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch embed"]:
        """Embeds token ids.

        Args:
          tokens: [batch, context_length]. What follows the end token never matters: attention is causal.
          text_end: [batch], the position of each text's end token, where the state is read.
          dtype: to compute in.
          constrain: pins the sharding of activations at the blocks' edges.

        Returns:
          [batch, embed], not normalised.
        """
        x = self.token_embedding[...].astype(dtype)[tokens] + self.positions[...].astype(dtype)
        x = self.transformer(constrain(x), causal=True, constrain=constrain)
        x = jnp.take_along_axis(x, text_end[:, None, None], axis=1)[:, 0]
        return linear(self.ln_final(x), self.projection[...])
