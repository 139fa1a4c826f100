"""The text transformers of CLIP and of SigLIP.

CLIP's (Radford et al. 2021, section 2.4; OpenAI's clip/model.py `encode_text`) is causal and read at the end token;
SigLIP's (Zhai et al. 2023; google-research/big_vision, models/proj/image_text/text_transformer.py) sees all of a text
and is read at the last place of the row.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.towers.layers import Activation, LayerNorm, Remat, dropout, normal
from jaxclip.towers.transformer import BlockConfig, Transformer, check_block, layer_keys, published_text_init


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Attributes:
    vocab_size: rows of the token embedding.
    context_length: tokens of a text, start and end included.
    width, heads, mlp_width, activation, eps: of the blocks, see `transformer.BlockConfig`.
    layers: how many blocks.
    causal: a token sees those up to itself, or all.
    pool: where a text is read: "end", at its end token; "last", at the last place of the row, padding or not.
    scan, remat: how the blocks run, see `transformer.Transformer`.
    drop: share of the values that dropout sets to 0 in training, of the embedded tokens and in the blocks.
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
    scan: bool = True
    remat: Remat = "none"
    drop: float = 0.0
    name: Literal["text"] = "text"

    # Whether positions can be interpolated to longer texts than those of training; see `weights.positions`.
    resizes_positions: ClassVar[bool] = True

    def __post_init__(self):
        check_at_least(self, 2, "context_length")
        check_at_least(self, 1, "vocab_size", "layers")
        check_block(self.block)

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.heads, self.mlp_width, self.activation, self.eps, drop=self.drop)

    @property
    def output_width(self) -> int:
        """Of the pooled vector."""
        return self.width

    def init(self, *, rngs: nnx.Rngs) -> TextTransformer:
        """The tower, freshly initialized."""
        return TextTransformer(self, rngs=rngs)


class TextTransformer(nnx.Module):
    """Tokens, positions, blocks, ln_final, the state at one place; an `interface.TextTower`.

    >>> tower = TextConfig(vocab_size=100, context_length=8, width=64, layers=1, heads=2).init(rngs=nnx.Rngs(params=0))
    >>> tokens, end = jnp.zeros((2, 8), jnp.int32), jnp.array([3, 7])
    >>> tower(tokens, end).shape, tower.tokens(tokens, end).shape
    ((2, 64), (2, 8, 64))
    """

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        width, block = config.width, config.block
        self.config = config
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, width)))
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (config.context_length, width)))
        init = published_text_init(width, config.layers, block.hidden)
        keys = layer_keys(rngs, config.layers)
        self.transformer = Transformer(block, init, keys, scan=config.scan, remat=config.remat)
        self.ln_final = LayerNorm(width, config.eps)

    def __call__(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch width"]:
        """The state at the end token, or at the last place; nothing after the end token matters to a causal tower."""
        # One state is normalized, not all.
        return self.ln_final(self.pool(self._states(tokens, ctx), end))

    def tokens(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch context width"]:
        """The states of all tokens, after `ln_final`."""
        return self.ln_final(self._states(tokens, ctx))

    def pool(
        self, states: Float[Array, "batch context width"], end: Int[Array, "batch"]
    ) -> Float[Array, "batch width"]:
        """The state of each text at the place where it is read."""
        place = end if self.config.pool == "end" else jnp.full_like(end, states.shape[1] - 1)
        return jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]

    def _states(self, tokens: Int[Array, "batch context"], ctx: Context) -> Float[Array, "batch context width"]:
        """Before `ln_final`."""
        x = self.token_embedding[...].astype(ctx.dtype)[tokens] + self.positions[...].astype(ctx.dtype)
        x = dropout(x, self.config.drop, ctx.keys, 0)
        return self.transformer(ctx.constrain(x), ctx, causal=self.config.causal)
