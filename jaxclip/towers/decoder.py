"""Transformer decoder of captions (Vaswani et al. 2017, section 3.1): in training whole texts, else word by word."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.towers.layers import Activation, LayerNorm, Remat, activate, dropout, linear, normal, zeros
from jaxclip.towers.transformer import Block, BlockConfig, BlockInit, Transformer, check_block, layer_keys


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """VirTex's, of width 1024, by default (Desai and Johnson 2021, section 3).

    Attributes:
      vocab_size: rows of the token embedding.
      context_length: tokens of a text, start and end included.
      width, heads, mlp_width, activation, eps, norm, drop: of the blocks, see `transformer.BlockConfig`; `drop` is of
        the embedded tokens, too.
      layers: how many blocks.
      scan, remat: how the blocks run, see `transformer.Transformer`.
      init: standard deviation of the initial matrices and embeddings, as of BERT; narrow models want more.
    """

    vocab_size: int = 10_000
    context_length: int = 30
    width: int = 1024
    layers: int = 1
    heads: int = 16
    mlp_width: int = 0
    activation: Activation = "gelu"
    eps: float = 1e-5
    norm: Literal["pre", "post"] = "post"
    drop: float = 0.1
    scan: bool = True
    remat: Remat = "none"
    init: float = 0.02

    def __post_init__(self):
        check_at_least(self, 2, "context_length")
        check_at_least(self, 1, "vocab_size", "layers")
        check_at_least(self, 0, "init")
        check_block(self.block)

    @property
    def block(self) -> BlockConfig:
        """Of blocks that attend to tokens of the decoder's own width."""
        return BlockConfig(
            self.width, self.heads, self.mlp_width, self.activation, self.eps, self.norm, self.width, self.drop
        )


class TokenEmbedding(nnx.Module):
    """Words and positions, summed, normalized and dropped out; 0 behind the end of a text.

    >>> embedding = TokenEmbedding(DecoderConfig(vocab_size=9, width=64, heads=1), rngs=nnx.Rngs(params=0))
    >>> embedding(jnp.zeros((2, 5), jnp.int32), jnp.ones((2, 5), bool)).shape
    (2, 5, 64)
    """

    # Of the layer normalization (kdexd/virtex, modules/embedding.py).
    EPS = 1e-8

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        start = normal(config.init)
        self.drop = config.drop
        self.token_embedding = nnx.Param(start(rngs.params(), (config.vocab_size, config.width)))
        self.positions = nnx.Param(start(rngs.params(), (config.context_length, config.width)))
        self.norm = LayerNorm(config.width, self.EPS)

    def __call__(
        self, tokens: Int[Array, "batch length"], seen: Bool[Array, "batch length"], ctx: Context = Context()
    ) -> Float[Array, "batch length width"]:
        """The states of tokens before any block.

        Args:
          tokens: ids, up to `context_length` of them.
          seen: which of them belong to the text.
          ctx: its `keys` are for dropout.
        """
        x = self.token_embedding[...].astype(ctx.dtype)[tokens]
        x = self.norm(x + self.positions[: tokens.shape[1]].astype(ctx.dtype))
        return jnp.where(seen[..., None], dropout(x, self.drop, ctx.keys, 0), 0)

    def at(self, tokens: Int[Array, "batch beams"], place: Int[Array, ""], ctx: Context) -> Array:
        """[batch, beams, width], the states of tokens that all are at one place of their texts, without dropout."""
        x = self.token_embedding[...].astype(ctx.dtype)[tokens]
        return self.norm(x + self.positions[place].astype(ctx.dtype))


class Cache(NamedTuple):
    """Keys and values of a decoder's layers.

    Attributes:
      keys, values: of the texts so far, [layers, batch, beams, length, width].
      context_keys, context_values: of what is attended to, which all beams share, [layers, batch, 1, tokens, width].
    """

    keys: Array
    values: Array
    context_keys: Array
    context_values: Array


class Decoder(Transformer):
    """Blocks that attend to their own tokens and, by cross-attention, to a context such as an image's tokens.

    Args:
      config: of the blocks.
      rngs: for the initialization.
      first: see `Transformer`.

    >>> decoder = Decoder(DecoderConfig(width=64, heads=1), rngs=nnx.Rngs(params=0))
    >>> decoder(jnp.zeros((2, 5, 64)), context=jnp.zeros((2, 4, 64)), causal=True).shape
    (2, 5, 64)
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, first: int = 0):
        start = normal(config.init)
        init = BlockInit(start, start, start, start, zeros, zeros)
        keys = layer_keys(rngs, config.layers)
        super().__init__(config.block, init, keys, scan=config.scan, remat=config.remat, first=first)

    def begin(self, context: Float[Array, "batch tokens width"], beams: int, length: int) -> Cache:
        """The cache before the first token.

        Args:
          context: what is attended to.
          beams: texts that are continued for each row of the context.
          length: the maximum number of tokens of a text.
        """

        graph, stacked = nnx.split(self.blocks)

        def of_context(params: nnx.State) -> tuple[Array, Array]:
            block = nnx.merge(graph, params)
            keys, values = jnp.split(linear(context, block.cross_kv_kernel[...], block.cross_kv_bias[...]), 2, axis=-1)
            return keys[:, None], values[:, None]

        batch, _, width = context.shape
        empty = jnp.zeros((self.layers, batch, beams, length, width), context.dtype)
        return Cache(empty, empty, *jax.vmap(of_context)(stacked))

    def step(
        self, x: Float[Array, "batch beams width"], cache: Cache, place: Int[Array, ""]
    ) -> tuple[Float[Array, "batch beams width"], Cache, Float[Array, "batch beams tokens"]]:
        """One token more of each text; what the whole call gives there, without dropout.

        Args:
          x: the states of the tokens before the first block.
          cache: of the tokens before them.
          place: of the tokens in their texts, 0 for the first.

        Returns:
          Their states, the cache with them, and the last block's attention to the context, whose sum over tokens is 1:
          the mean over heads.
        """
        graph, stacked = nnx.split(self.blocks)

        def layer(x: Array, given: tuple) -> tuple[Array, tuple]:
            params, cache = given
            x, keys, values, weights = _step(nnx.merge(graph, params), x, cache, place)
            return x, (keys, values, weights)

        x, (keys, values, weights) = jax.lax.scan(layer, x, (stacked, cache))
        return x, cache._replace(keys=keys, values=values), weights[-1]


def _step(block: Block, x: Array, cache: Cache, place: Array) -> tuple[Array, Array, Array, Array]:
    """One block's part of `Decoder.step`; its cache has no axis of layers."""
    config, post = block.config, block.config.norm == "post"

    def before(norm: LayerNorm, x: Array) -> Array:
        return x if post else norm(x)

    def after(norm: LayerNorm, x: Array) -> Array:
        return norm(x) if post else x

    q, k, v = jnp.split(linear(before(block.ln_1, x), block.qkv_kernel[...], block.qkv_bias[...]), 3, axis=-1)
    keys = jax.lax.dynamic_update_slice_in_dim(cache.keys, k[:, :, None], place, axis=2)
    values = jax.lax.dynamic_update_slice_in_dim(cache.values, v[:, :, None], place, axis=2)
    mixed, _ = _attend_one(q, keys, values, config.heads, jnp.arange(keys.shape[2]) <= place)
    x = after(block.ln_1, x + linear(mixed, block.attention_out_kernel[...], block.attention_out_bias[...]))

    q = linear(before(block.ln_cross, x), block.cross_q_kernel[...], block.cross_q_bias[...])
    mixed, weights = _attend_one(q, cache.context_keys, cache.context_values, config.heads)
    x = after(block.ln_cross, x + linear(mixed, block.cross_out_kernel[...], block.cross_out_bias[...]))

    hidden = linear(before(block.ln_2, x), block.mlp_in_kernel[...], block.mlp_in_bias[...])
    hidden = linear(activate(hidden, config.activation), block.mlp_out_kernel[...], block.mlp_out_bias[...])
    return after(block.ln_2, x + hidden), keys, values, weights


def _attend_one(
    q: Float[Array, "batch beams width"],
    keys: Float[Array, "batch some length width"],
    values: Float[Array, "batch some length width"],
    heads: int,
    mask: Bool[Array, "length"] | None = None,
) -> tuple[Float[Array, "batch beams width"], Float[Array, "batch beams length"]]:
    """Attention of one query per beam, to its beam's keys or to those that all beams share, and its mean weights."""
    batch, beams, width = q.shape
    shape = (batch, -1, heads, width // heads)
    by_head = (*keys.shape[:3], heads, width // heads)
    q, keys, values = q.reshape(shape) * (width // heads) ** -0.5, keys.reshape(by_head), values.reshape(by_head)
    if keys.shape[1] == 1:
        logits = jnp.einsum("bkhd,blhd->bkhl", q, keys[:, 0], preferred_element_type=jnp.float32)
    else:
        logits = jnp.einsum("bkhd,bklhd->bkhl", q, keys, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    by_value = "bkhl,blhd->bkhd" if values.shape[1] == 1 else "bkhl,bklhd->bkhd"
    found = values[:, 0] if values.shape[1] == 1 else values
    mixed = jnp.einsum(by_value, weights.astype(values.dtype), found).reshape(batch, beams, width)
    return mixed, jnp.mean(weights, axis=2)
