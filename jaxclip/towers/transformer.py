"""The transformer of all towers: one kind of block, stacked, scanned or unrolled, rematerialized."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.layers import (
    Activation,
    Initializer,
    LayerNorm,
    Remat,
    activate,
    check_drop,
    dropout,
    linear,
    normal,
    uniform,
    zeros,
)
from jaxclip.towers.rngs import Rngs


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a block is.

    Attributes:
      width: of the residual stream.
      heads: attention heads; divides `width`.
      mlp_width: of the hidden layer; 0 for 4 * width.
      activation: of the hidden layer.
      eps: of the layer normalizations.
      norm: where they stand: "pre", before attention and MLP, inside the residual branch (CLIP, ViT); "post", after
        the sum (BERT).
      context_width: of the tokens that the block attends to besides its own, between attention and MLP; 0 for a block
        without cross-attention.
      drop: share of the values that dropout sets to 0 in training, of attention weights and of what attention and MLP
        give (Devlin et al. 2019, appendix A.2: 0.1).
    """

    width: int
    heads: int
    mlp_width: int = 0
    activation: Activation = "quick_gelu"
    eps: float = 1e-5
    norm: Literal["pre", "post"] = "pre"
    context_width: int = 0
    drop: float = 0.0

    @property
    def hidden(self) -> int:
        return self.mlp_width or 4 * self.width


def check_block(config: BlockConfig) -> None:
    """Raises UserError naming the key that makes no block."""
    check_at_least(config, 1, "width", "heads")
    check_at_least(config, 0, "mlp_width")
    if config.width % config.heads:
        raise UserError(f"width={config.width} must be a multiple of heads={config.heads}")
    if not config.eps > 0:
        raise UserError(f"eps={config.eps} must be above 0")
    check_drop(config.drop)


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initializers of one block's four matrices and of the biases of its MLP.

    Attributes:
      qkv: the fused query, key and value matrix.
      attention_out: the matrix after attention.
      mlp_in: the matrix into the MLP.
      mlp_out: the matrix out of the MLP.
      mlp_in_bias: bias of `mlp_in`.
      mlp_out_bias: bias of `mlp_out`.
    """

    qkv: Initializer
    attention_out: Initializer
    mlp_in: Initializer
    mlp_out: Initializer
    mlp_in_bias: Initializer
    mlp_out_bias: Initializer


def attend(
    q: Float[Array, "batch queries width"],
    k: Float[Array, "batch keys width"],
    v: Float[Array, "batch keys width"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "batch keys"] | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[Array, "batch queries width"]:
    """Scaled dot-product attention with the logits and their softmax in float32.

    Args:
      q, k, v: projected; `width` is that of all heads together.
      heads: divides `width`.
      causal: query i sees keys up to i.
      mask: the keys that any query may see; None for all.
      drop: dropout of the attention weights, [batch, heads, queries, keys].

    >>> x = jnp.ones((2, 3, 8))
    >>> attend(x, x, x, heads=2, causal=True).shape
    (2, 3, 8)
    """
    batch, queries, width = q.shape
    keys, head_width = k.shape[1], width // heads
    q, k, v = (x.reshape(batch, -1, heads, head_width) for x in (q, k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q * head_width**-0.5, k, preferred_element_type=jnp.float32)
    hidden = jnp.finfo(jnp.float32).min
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones((queries, keys), bool)), logits, hidden)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, hidden)
    weights = drop(jax.nn.softmax(logits, axis=-1).astype(v.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, queries, width)


class Block(nnx.Module):
    """Attention, cross-attention if there is a context, MLP; each with its residual and its layer normalization."""

    def __init__(self, config: BlockConfig, init: BlockInit, *, rngs: nnx.Rngs):
        def param(initializer: Initializer, *shape: int) -> nnx.Param:
            return nnx.Param(initializer(rngs.params(), shape))

        width, hidden = config.width, config.hidden
        self.config = config
        self.ln_1 = LayerNorm(width, config.eps)
        self.qkv_kernel = param(init.qkv, width, 3 * width)
        self.qkv_bias = param(zeros, 3 * width)
        self.attention_out_kernel = param(init.attention_out, width, width)
        self.attention_out_bias = param(zeros, width)
        if config.context_width:
            self.ln_cross = LayerNorm(width, config.eps)
            self.cross_q_kernel = param(init.qkv, width, width)
            self.cross_q_bias = param(zeros, width)
            self.cross_kv_kernel = param(init.qkv, config.context_width, 2 * width)
            self.cross_kv_bias = param(zeros, 2 * width)
            self.cross_out_kernel = param(init.attention_out, width, width)
            self.cross_out_bias = param(zeros, width)
        self.ln_2 = LayerNorm(width, config.eps)
        self.mlp_in_kernel = param(init.mlp_in, width, hidden)
        self.mlp_in_bias = param(init.mlp_in_bias, hidden)
        self.mlp_out_kernel = param(init.mlp_out, hidden, width)
        self.mlp_out_bias = param(init.mlp_out_bias, width)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        ctx: Context = Context(),
        *,
        causal: bool = False,
        mask: Bool[Array, "batch tokens"] | None = None,
        context: Float[Array, "batch context context_width"] | None = None,
        context_mask: Bool[Array, "batch context"] | None = None,
        change_cross: Callable[[jax.Array], jax.Array] = lambda weights: weights,
    ) -> Float[Array, "batch tokens width"]:
        """Runs the block; a block with cross-attention needs the `context` it was made for.

        `change_cross` is applied to its cross-attention's weights, [batch, heads, tokens, context].
        """
        heads = self.config.heads

        def drop(place: int) -> Callable[[jax.Array], jax.Array]:
            return lambda x: dropout(x, self.config.drop, ctx.keys, place)

        def attention(x: jax.Array) -> jax.Array:
            q, k, v = jnp.split(linear(x, self.qkv_kernel[...], self.qkv_bias[...]), 3, axis=-1)
            mixed = attend(q, k, v, heads, causal=causal, mask=mask, drop=drop(0))
            return drop(1)(linear(mixed, self.attention_out_kernel[...], self.attention_out_bias[...]))

        def cross_attention(x: jax.Array) -> jax.Array:
            assert context is not None
            q = linear(x, self.cross_q_kernel[...], self.cross_q_bias[...])
            k, v = jnp.split(linear(context, self.cross_kv_kernel[...], self.cross_kv_bias[...]), 2, axis=-1)
            mixed = attend(q, k, v, heads, mask=context_mask, drop=lambda weights: drop(2)(change_cross(weights)))
            return drop(3)(linear(mixed, self.cross_out_kernel[...], self.cross_out_bias[...]))

        def mlp(x: jax.Array) -> jax.Array:
            hidden = linear(x, self.mlp_in_kernel[...], self.mlp_in_bias[...])
            hidden = activate(hidden, self.config.activation)
            return drop(4)(linear(hidden, self.mlp_out_kernel[...], self.mlp_out_bias[...]))

        x = self._residual(x, self.ln_1, attention)
        if self.config.context_width:
            x = self._residual(x, self.ln_cross, cross_attention)
        return self._residual(x, self.ln_2, mlp)

    def _residual(self, x: jax.Array, norm: LayerNorm, branch: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return x + branch(norm(x)) if self.config.norm == "pre" else norm(x + branch(x))


def layer_keys(rngs: nnx.Rngs, layers: int) -> Key[Array, "layers"]:
    """One key for the initialization of each block of a transformer."""
    return jax.random.split(rngs.params(), layers)


class Transformer(nnx.Module):
    """Blocks whose parameters are stacked along a leading axis of length `layers`.

    Args:
      config: of each block.
      init: initializers of a block.
      keys: for the initialization, one for each block; see `layer_keys`.
      scan: run the blocks by `lax.scan` (one block is compiled, what a TPU wants) or unrolled (faster on CPU).
      remat: what the backward pass recomputes: "none" keeps everything, "dots" keeps matrix products,
        "full" keeps only the blocks' inputs.
      first: the number of the first block in its tower, if that has several transformers. Each block's dropout has its
        number folded into the keys, from 1; 0 is left to the tower.
    """

    def __init__(
        self,
        config: BlockConfig,
        init: BlockInit,
        keys: Key[Array, "layers"],
        *,
        scan: bool,
        remat: Remat,
        first: int = 0,
    ):
        self.layers = len(keys)
        self.scan = scan
        self.remat = remat
        self.first = first
        self.blocks = nnx.vmap(lambda key: Block(config, init, rngs=Rngs(key)))(keys)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        ctx: Context = Context(),
        *,
        causal: bool = False,
        mask: Bool[Array, "batch tokens"] | None = None,
        context: Float[Array, "batch context context_width"] | None = None,
        context_mask: Bool[Array, "batch context"] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """Runs the blocks.

        Args:
          x: the tokens.
          ctx: its `keys` are for dropout; `constrain` pins the sharding of the activations at each block's edge.
          causal: a token sees those up to itself.
          mask: the tokens that any may see; None for all.
          context, context_mask: what blocks with cross-attention attend to.
        """
        graph, stacked = nnx.split(self.blocks)

        def run(x: jax.Array, params: Any, number: Any) -> jax.Array:
            block = nnx.merge(graph, params)
            x = block(x, ctx.fold(number), causal=causal, mask=mask, context=context, context_mask=context_mask)
            return ctx.constrain(x)

        return self.run(run, x, stacked)

    def run(self, layer: Callable[[jax.Array, Any, Any], jax.Array], x: jax.Array, stacked: Any) -> jax.Array:
        """What all layers give: scanned or unrolled, and rematerialized.

        Args:
          layer: of the states, the parameters of one layer and the number of its block.
          x: the states before the first layer.
          stacked: the parameters of all layers, a pytree of [layers, ...] arrays.
        """
        numbers = range(1 + self.first, 1 + self.first + self.layers)
        if self.remat == "full":
            layer = jax.checkpoint(layer)
        elif self.remat == "dots":
            layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        if self.scan:
            return jax.lax.scan(lambda x, given: (layer(x, *given), None), x, (stacked, jnp.asarray(numbers)))[0]
        leaves, tree = jax.tree.flatten(stacked)
        # lax.split, not indexing: its transpose is one concatenation instead of a padded sum per layer.
        split = [jax.lax.split(leaf, [1] * self.layers, axis=0) for leaf in leaves]
        for place, number in enumerate(numbers):
            x = layer(x, jax.tree.unflatten(tree, [pieces[place][0] for pieces in split]), number)
        return x


def published_text_init(width: int, layers: int, hidden: int) -> BlockInit:
    """The text tower's initialization in OpenAI's release (clip/model.py, `initialize_parameters`)."""
    return BlockInit(
        qkv=normal(width**-0.5),
        attention_out=normal(width**-0.5 * (2 * layers) ** -0.5),
        mlp_in=normal((2 * width) ** -0.5),
        mlp_out=normal(width**-0.5 * (2 * layers) ** -0.5),
        mlp_in_bias=uniform(width**-0.5),
        mlp_out_bias=uniform(hidden**-0.5),
    )


def published_image_init(width: int, hidden: int) -> BlockInit:
    """The image tower's: PyTorch's defaults, Xavier-uniform for the fused qkv [3 width, width], else 1/sqrt(fan in)."""
    return BlockInit(
        qkv=uniform(math.sqrt(6 / (width + 3 * width))),
        attention_out=uniform(width**-0.5),
        mlp_in=uniform(width**-0.5),
        mlp_out=uniform(hidden**-0.5),
        mlp_in_bias=uniform(width**-0.5),
        mlp_out_bias=uniform(hidden**-0.5),
    )
