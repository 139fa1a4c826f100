"""The text transformers of CLIP and of SigLIP.

CLIP's (Radford et al. 2021, section 2.4; OpenAI's clip/model.py `encode_text`) is causal and read at the end token;
SigLIP's (Zhai et al. 2023; google-research/big_vision, models/proj/image_text/text_transformer.py) sees all of a text
and is read at the last place of the row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxclip.config import check_at_least
from jaxclip.towers.layers import Activation, LayerNorm, Remat, linear, normal, zeros
from jaxclip.towers.transformer import BlockConfig, Transformer, check_block, published_text_init


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Attributes:
    vocab_size: rows of the token embedding.
    context_length: tokens of a text, start and end included.
    width, heads, mlp_width, activation, eps: of the blocks, see `transformer.BlockConfig`.
    layers: how many blocks.
    causal: a token sees those up to itself, or all.
    pool: where a text is read: "end", at its end token; "last", at the last place of the row, padding or not.
    projection_bias: of the projection to the shared space.
    scan, remat: how the blocks run, see `transformer.Transformer`.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    mlp_width: int = 0
    activation: Activation = "quick_gelu"
    eps: float = 1e-5
    causal: bool = True
    pool: Literal["end", "last"] = "end"
    projection_bias: bool = False
    scan: bool = True
    remat: Remat = "none"
    name: Literal["text"] = "text"

    def __post_init__(self):
        check_at_least(self, 2, "context_length")
        check_at_least(self, 1, "vocab_size", "layers")
        check_block(self.block)

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.heads, self.mlp_width, self.activation, self.eps)

    def init(self, embed_dim: int, *, rngs: nnx.Rngs) -> TextTransformer:
        """The tower, freshly initialised; `embed_dim` is the width of its embeddings."""
        return TextTransformer(self, embed_dim, rngs=rngs)


class TextTransformer(nnx.Module):
    """Tokens, positions, blocks, ln_final, the state at one place, projection."""

    def __init__(self, config: TextConfig, embed_dim: int, *, rngs: nnx.Rngs):
        width, block = config.width, config.block
        self.config = config
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, width)))
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (config.context_length, width)))
        init = published_text_init(width, config.layers, block.hidden)
        self.transformer = Transformer(block, config.layers, init, scan=config.scan, remat=config.remat, rngs=rngs)
        self.ln_final = LayerNorm(width, config.eps)
        self.projection = nnx.Param(normal(width**-0.5)(rngs.params(), (width, embed_dim)))
        if config.projection_bias:
            self.projection_bias = nnx.Param(zeros(rngs.params(), (embed_dim,)))

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
          tokens: [batch, context_length]. What follows the end token never matters to a causal tower.
          text_end: [batch], the position of each text's end token, where `pool` "end" reads the state.
          dtype: to compute in.
          constrain: pins the sharding of activations at the blocks' edges.

        Returns:
          [batch, embed], not normalised.
        """
        x = self.token_embedding[...].astype(dtype)[tokens] + self.positions[...].astype(dtype)
        x = self.transformer(constrain(x), causal=self.config.causal, constrain=constrain)
        place = text_end if self.config.pool == "end" else jnp.full_like(text_end, tokens.shape[1] - 1)
        x = jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
        bias = self.projection_bias[...] if self.config.projection_bias else None
        return linear(self.ln_final(x), self.projection[...], bias)
