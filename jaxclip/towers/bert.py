"""BERT as a text tower (Devlin et al. 2019, section 3): tokens, positions and segments, post-norm blocks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.layers import Activation, LayerNorm, Linear, Remat, activate, dropout, normal, zeros
from jaxclip.towers.transformer import BlockConfig, BlockInit, Transformer, check_block, layer_keys


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """BERT-base by default.

    Attributes:
      vocab_size: rows of the token embedding.
      context_length: tokens of a text, start and end included.
      width, heads, mlp_width, activation, eps: of the blocks, see `transformer.BlockConfig`.
      layers: how many blocks.
      lower: how many of them are in the lower half, `text/lower`, the others being in `text/upper`; -1 for half of
        them, rounded down. A pattern of paths can so name the first layers alone.
      scan, remat: how the blocks run, see `transformer.Transformer`.
      drop: share of the values that dropout sets to 0 in training, of the embedded tokens and in the blocks; BERT was
        trained with 0.1.
      stddev: of the initial matrices and embeddings; narrow models want more than BERT's.
      pool: the vector of a text: "first" is the state of [CLS]; "max" the maximum of each channel over all of its
        tokens (ConVIRT, Zhang et al. 2020, section 2.2).
    """

    vocab_size: int = 30_522
    context_length: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 0
    activation: Activation = "gelu"
    eps: float = 1e-12
    lower: int = -1
    scan: bool = True
    remat: Remat = "none"
    drop: float = 0.0
    stddev: float = 0.02  # google-research/bert, modeling.py: initializer_range
    pool: Literal["first", "max"] = "first"
    name: Literal["bert"] = "bert"

    # A longer text than those of training would need positions that BERT has not learned; see `weights.positions`.
    resizes_positions: ClassVar[bool] = False

    def __post_init__(self):
        check_at_least(self, 2, "context_length")
        check_at_least(self, 1, "vocab_size", "layers")
        if not -1 <= self.lower < self.layers:
            raise UserError(f"lower={self.lower} must be below layers={self.layers}, and at least 0 (-1 for half)")
        check_at_least(self, 0, "stddev")
        check_block(self.block)

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width, self.heads, self.mlp_width, self.activation, self.eps, norm="post", drop=self.drop
        )

    @property
    def lower_layers(self) -> int:
        """How many blocks are in the lower half."""
        return self.layers // 2 if self.lower == -1 else self.lower

    @property
    def output_width(self) -> int:
        """Of the pooled vector."""
        return self.width

    def init(self, *, rngs: nnx.Rngs, context_width: int = 0) -> Bert:
        """The tower, freshly initialized.

        Args:
          rngs: for the initialization.
          context_width: of the tokens that the upper half attends to besides its own; 0 for no cross-attention.
        """
        return Bert(self, rngs=rngs, context_width=context_width)


class Bert(nnx.Module):
    """The state of the first token, [CLS], or the maximum over all; an `interface.TextTower`.

    The blocks are in two halves, `lower` and `upper`: the lower one alone may be frozen, and it can encode texts on its
    own, with the upper one fusing them with tokens of an image (ALBEF, Li et al. 2021, section 3.1). If all blocks are
    in the upper half, there is no `lower`.

    >>> config = BertConfig(vocab_size=100, context_length=8, width=64, layers=2, heads=2)
    >>> tower, tokens, end = config.init(rngs=nnx.Rngs(params=0)), jnp.zeros((2, 8), jnp.int32), jnp.array([3, 7])
    >>> tower(tokens, end).shape, tower.tokens(tokens, end).shape
    ((2, 64), (2, 8, 64))
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, context_width: int = 0):
        width, start = config.width, normal(config.stddev)
        self.config = config
        self.token_embedding = nnx.Param(start(rngs.params(), (config.vocab_size, width)))
        self.positions = nnx.Param(start(rngs.params(), (config.context_length, width)))
        # A caption is the first of the two segments that BERT distinguishes. The second is kept so that published
        # weights fit.
        self.segments = nnx.Param(start(rngs.params(), (2, width)))
        self.ln_embedding = LayerNorm(width, config.eps)
        init = BlockInit(start, start, start, start, zeros, zeros)
        # Drawn together, so that the division of the tower does not change its initialization.
        keys, half = layer_keys(rngs, config.layers), config.lower_layers
        if half:
            self.lower = Transformer(config.block, init, keys[:half], scan=config.scan, remat=config.remat)
        upper = dataclasses.replace(config.block, context_width=context_width)
        self.upper = Transformer(upper, init, keys[half:], scan=config.scan, remat=config.remat, first=half)

    def __call__(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch width"]:
        """The pooled state of each text; no token sees anything after `end`."""
        return self.pool(self.tokens(tokens, end, ctx), end)

    def tokens(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch context width"]:
        """The states of all tokens after both halves, of a tower without cross-attention."""
        return self.upper_states(self.lower_states(tokens, end, ctx), end, ctx)

    def pool(
        self, states: Float[Array, "batch context width"], end: Int[Array, "batch"]
    ) -> Float[Array, "batch width"]:
        """The state of the first token, or the maximum over those up to `end`."""
        if self.config.pool == "first":
            return states[:, 0]
        # By position, not by jnp.max: its derivative compares the states with their maximum, and a compiler that
        # computes the states twice, rounded in two ways, finds none that is equal.
        where = jnp.argmax(jnp.where(seen(states, end)[..., None], states, -jnp.inf), axis=1, keepdims=True)
        return jnp.take_along_axis(states, where, axis=1)[:, 0]

    def lower_states(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch context width"]:
        """The states of all tokens after the lower half: the embedded tokens if that has no blocks."""
        x = self.token_embedding[...].astype(ctx.dtype)[tokens]
        x = x + (self.positions[: tokens.shape[1]] + self.segments[0]).astype(ctx.dtype)
        x = ctx.constrain(dropout(self.ln_embedding(x), self.config.drop, ctx.keys, 0))
        return self.lower(x, ctx, mask=seen(x, end)) if self.config.lower_layers else x

    def upper_states(
        self,
        states: Float[Array, "batch context width"],
        end: Int[Array, "batch"],
        ctx: Context = Context(),
        *,
        context: Float[Array, "batch tokens context_width"] | None = None,
        context_mask: Bool[Array, "batch tokens"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "batch context width"]:
        """The states of all tokens after the upper half.

        Args:
          states: after the lower half.
          end: the position of each text's last token.
          ctx: as of `tokens`.
          context, context_mask: what the blocks attend to besides the text, for a tower with cross-attention.
          causal: a token sees those up to itself, as in a decoder.
        """
        mask = None if causal else seen(states, end)
        return self.upper(states, ctx, causal=causal, mask=mask, context=context, context_mask=context_mask)


class WordHead(nnx.Module):
    """Scores of all words from states, for masked language modeling: a layer, and the token embedding as output matrix.

    google-research/bert, run_pretraining.py `get_masked_lm_output`.

    >>> config = BertConfig(vocab_size=100, context_length=8, width=64, layers=2, heads=2)
    >>> head = WordHead(config, rngs=nnx.Rngs(params=0))
    >>> head(jnp.zeros((2, 3, 64)), jnp.zeros((100, 64))).shape
    (2, 3, 100)
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.transform = Linear(config.width, config.width, kernel=normal(config.stddev), bias=zeros, rngs=rngs)
        self.ln = LayerNorm(config.width, config.eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def __call__(
        self, states: Float[Array, "*batch width"], table: Float[Array, "vocabulary width"]
    ) -> Float[Array, "*batch vocabulary"]:
        """Logits in float32; `table` is the token embedding."""
        hidden = self.hidden(states)
        logits = jnp.einsum("...w,vw->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return logits + self.bias[...]

    def hidden(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """What is multiplied by the token embedding."""
        return self.ln(activate(self.transform(states), self.activation))


def seen(states: Shaped[Array, "batch context *rest"], end: Int[Array, "batch"]) -> Bool[Array, "batch context"]:
    """Which tokens are seen: those up to the end of their text."""
    return jnp.arange(states.shape[1]) <= end[:, None]
