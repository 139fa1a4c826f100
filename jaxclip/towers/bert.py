"""BERT as a text tower (Devlin et al. 2019, section 3): tokens, positions and segments, post-norm blocks."""

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
from jaxclip.towers.transformer import BlockConfig, BlockInit, Transformer, check_block


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """BERT-base unless told otherwise.

    Attributes:
      vocab_size: rows of the token embedding.
      context_length: tokens of a text, start and end included.
      width, heads, mlp_width, activation, eps: of the blocks, see `transformer.BlockConfig`.
      layers: how many blocks.
      scan, remat: how the blocks run, see `transformer.Transformer`.
    """

    vocab_size: int = 30_522
    context_length: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 0
    activation: Activation = "gelu"
    eps: float = 1e-12
    scan: bool = True
    remat: Remat = "none"
    name: Literal["bert"] = "bert"

    def __post_init__(self):
        check_at_least(self, 2, "context_length")
        check_at_least(self, 1, "vocab_size", "layers")
        check_block(self.block)

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.heads, self.mlp_width, self.activation, self.eps, norm="post")

    def init(self, embed_dim: int, *, rngs: nnx.Rngs) -> Bert:
        """The tower, freshly initialised; `embed_dim` is the width of its embeddings."""
        return Bert(self, embed_dim, rngs=rngs)


class Bert(nnx.Module):
    """The state of the first token, [CLS], projected without bias."""

    def __init__(self, config: BertConfig, embed_dim: int, *, rngs: nnx.Rngs):
        width, start = config.width, normal(0.02)  # google-research/bert, modeling.py: initializer_range
        self.config = config
        self.token_embedding = nnx.Param(start(rngs.params(), (config.vocab_size, width)))
        self.positions = nnx.Param(start(rngs.params(), (config.context_length, width)))
        # Of the two segments that BERT tells apart, a caption is the first; the second is there for its weights' sake.
        self.segments = nnx.Param(start(rngs.params(), (2, width)))
        self.ln_embedding = LayerNorm(width, config.eps)
        self.transformer = Transformer(
            config.block,
            config.layers,
            BlockInit(start, start, start, start, zeros, zeros),
            scan=config.scan,
            remat=config.remat,
            rngs=rngs,
        )
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
          tokens: [batch, context_length].
          text_end: [batch], the position of each text's last token; no token sees what follows it.
          dtype: to compute in.
          constrain: pins the sharding of activations at the blocks' edges.

        Returns:
          [batch, embed], not normalised.
        """
        x = self.tokens(tokens, text_end, dtype=dtype, constrain=constrain)
        return linear(x[:, 0], self.projection[...])

    def tokens(
        self,
        tokens: Int[Array, "batch context"],
        text_end: Int[Array, "batch"],
        *,
        dtype: DTypeLike = jnp.float32,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch context width"]:
        """The states of all tokens, [batch, context_length, width]; arguments as of `__call__`."""
        mask = jnp.arange(tokens.shape[1]) <= text_end[:, None]
        x = self.token_embedding[...].astype(dtype)[tokens]
        x = x + (self.positions[...] + self.segments[0]).astype(dtype)
        return self.transformer(constrain(self.ln_embedding(x)), mask=mask, constrain=constrain)
