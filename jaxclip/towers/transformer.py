"""The transformer of all towers: one kind of block, stacked, scanned or unrolled, rematerialized."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.attention import SelfAttention, attend
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
        attention: SelfAttention | None = None,
        remat: Remat = "none",
    ) -> Float[Array, "batch tokens width"]:
        """Runs the block; a block with cross-attention needs the `context` it was made for.

        Args:
          x, ctx, causal, mask, context, context_mask: as of `Transformer`.
          change_cross: applied to the weights of the cross-attention, [batch, heads, tokens, context].
          attention: the form of the self-attention, for padded tokens; the plain one by default.
          remat: "products", see `Transformer`; others are for whole blocks.
        """
        config, pre = self.config, self.config.norm == "pre"
        part = jax.checkpoint if remat == "products" else _as_it_is
        attention = attention or SelfAttention(config.heads, x.shape[1], causal)
        product = functools.partial(linear, flat=not ctx.on_tpu)

        def drop(place: int) -> Callable[[jax.Array], jax.Array]:
            return lambda x: dropout(x, config.drop, ctx.keys, place)

        def weights(name: str) -> tuple[jax.Array, jax.Array]:
            # Rounded outside of `part`: inside, the backward pass would round all of them again.
            return getattr(self, f"{name}_kernel")[...].astype(x.dtype), getattr(self, f"{name}_bias")[...]

        def into(norm: LayerNorm, name: str) -> Callable[[jax.Array], jax.Array]:
            """The map from the residual stream into a branch."""
            kernel, bias = weights(name)
            # The gradient of the bias of queries, keys and values may come from the attention.
            bias = attention.outer_bias(bias) if name == "qkv" else bias
            return part(lambda x: product(norm(x) if pre else x, kernel, bias))

        def add(norm: LayerNorm, x: jax.Array, branch: jax.Array) -> jax.Array:
            return x + branch if pre else part(lambda x, branch: norm(x + branch))(x, branch)

        qkv = into(self.ln_1, "qkv")(x)
        bias = weights("qkv")[1]
        # A kernel keeps what its own backward pass needs.
        whole = _as_it_is if attention.form == "kernel" else part
        mixed = whole(lambda qkv: attention(qkv, bias, ctx, mask, drop(0)))(qkv)
        x = add(self.ln_1, x, drop(1)(product(mixed, *weights("attention_out"))))

        if config.context_width:
            assert context is not None
            k, v = jnp.split(product(context, *weights("cross_kv")), 2, axis=-1)

            def cross(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                dropped = lambda weights: drop(2)(change_cross(weights))  # noqa: E731
                return attend(q, k, v, config.heads, mask=context_mask, drop=dropped)

            mixed = part(cross)(into(self.ln_cross, "cross_q")(x), k, v)
            x = add(self.ln_cross, x, drop(3)(product(mixed, *weights("cross_out"))))

        first, inner_bias = weights("mlp_in")
        last, outer_bias = weights("mlp_out")

        def out(hidden: jax.Array) -> jax.Array:
            # The bias is added here so that its gradient is a sum of what the derivative of the activation gives.
            hidden = activate(hidden + inner_bias.astype(x.dtype), config.activation)
            return product(hidden, last, outer_bias)

        hidden = part(lambda x: product(self.ln_2(x) if pre else x, first))(x)
        return add(self.ln_2, x, drop(4)(part(out)(hidden)))


def _as_it_is(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return function


def layer_keys(rngs: nnx.Rngs, layers: int) -> Key[Array, "layers"]:
    """One key for the initialization of each block of a transformer."""
    return jax.random.split(rngs.params(), layers)


class Transformer(nnx.Module):
    """Blocks whose parameters are stacked along a leading axis of length `layers`.

    Args:
      config: of each block.
      init: initializers of a block.
      keys: for the initialization, one for each block; see `layer_keys`.
      scan: run the blocks by `lax.scan`, of which one is compiled, or unrolled, which is faster everywhere.
      remat: what the backward pass recomputes: "none" keeps everything, "products" keeps the results of products and of
        attention, "dots" those of products with weights alone, "full" only the blocks' inputs. The TPU's compiler does
        by itself what "products" does, and more if the memory is short.
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
        self.config = config
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
        attention: SelfAttention | None = None,
    ) -> Float[Array, "batch own width"]:
        """Runs the blocks.

        Args:
          x: the tokens.
          ctx: its `keys` are for dropout; `constrain` pins the sharding of the activations at each block's edge.
          causal: a token sees those up to itself.
          mask: the tokens that any may see; None for all.
          context, context_mask: what blocks with cross-attention attend to.
          attention: of x, which already has its padding; by default what `attention` gives.

        Returns:
          The states of the row's own tokens, without padding.
        """
        graph, stacked = nnx.split(self.blocks)
        attention = attention or self.attention(ctx, x.shape[1], x.dtype, causal, mask is not None)
        x, mask = attention.padded(x), None if mask is None else attention.padded(mask)

        def run(x: jax.Array, params: Any, number: Any) -> jax.Array:
            block = nnx.merge(graph, params)
            given = {"causal": causal, "mask": mask, "context": context, "context_mask": context_mask}
            return ctx.constrain(block(x, ctx.fold(number), **given, attention=attention, remat=self.remat))

        return self.run(run, x, stacked)[:, : attention.tokens]

    def attention(
        self, ctx: Context, tokens: int, dtype: DTypeLike, causal: bool = False, masked: bool = False
    ) -> SelfAttention:
        """The self-attention of all blocks, for rows of so many tokens; see `SelfAttention.of`."""
        size = (tokens, self.config.width, self.config.heads, dtype)
        dropped = ctx.keys is not None and self.config.drop > 0
        return SelfAttention.of(ctx, *size, causal=causal, masked=masked, dropped=dropped)

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
            own = [pieces[place][0] for pieces in split]
            if x.dtype != jnp.float32:
                # Rounded and cut out once: fused into each product, it would be done again by all of them.
                own = jax.lax.optimization_barrier([leaf.astype(x.dtype) if leaf.ndim == 2 else leaf for leaf in own])
            x = layer(x, jax.tree.unflatten(tree, own), number)
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
