"""The transformer both towers are made of: pre-norm blocks, stacked, scanned or unrolled, rematerialised or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Initializer = Callable[[jax.Array, Sequence[int]], jax.Array]
Remat = Literal["none", "dots", "full"]


def normal(stddev: float) -> Initializer:
    """Initialiser: a normal distribution of mean 0 and the given standard deviation."""
    return lambda key, shape: stddev * jax.random.normal(key, shape, jnp.float32)


def uniform(bound: float) -> Initializer:
    """Initialiser: uniform on [-bound, bound]."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def zeros(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Initialiser: zeros."""
    return jnp.zeros(shape, jnp.float32)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP models."""
    return x * jax.nn.sigmoid(1.702 * x)


def linear(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, "outputs"] | None = None,
) -> Float[Array, "*batch outputs"]:
    """x @ kernel + bias in the dtype of x."""
    # As one matrix: XLA's CPU backend takes twice as long over the gradients of the product with a 3-D left side.
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    if bias is not None:
        y = y + bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initialisers of one block's four matrices and of the biases of its MLP.

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


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis with eps 1e-5; statistics in float32 whatever the input."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-5)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Block(nnx.Module):
    """One pre-norm transformer block: LN, attention, residual; LN, MLP (4x, QuickGELU), residual."""

    def __init__(self, width: int, heads: int, init: BlockInit, *, rngs: nnx.Rngs):
        def param(initializer: Initializer, *shape: int) -> nnx.Param:
            return nnx.Param(initializer(rngs.params(), shape))

        self.heads = heads
        self.ln_1 = LayerNorm(width)
        self.qkv_kernel = param(init.qkv, width, 3 * width)
        self.qkv_bias = param(zeros, 3 * width)
        self.attention_out_kernel = param(init.attention_out, width, width)
        self.attention_out_bias = param(zeros, width)
        self.ln_2 = LayerNorm(width)
        self.mlp_in_kernel = param(init.mlp_in, width, 4 * width)
        self.mlp_in_bias = param(init.mlp_in_bias, 4 * width)
        self.mlp_out_kernel = param(init.mlp_out, 4 * width, width)
        self.mlp_out_bias = param(init.mlp_out_bias, width)

    def attend(self, x: Float[Array, "batch tokens width"], causal: bool) -> Float[Array, "batch tokens width"]:
        batch, tokens, width = x.shape
        head_width = width // self.heads
        qkv = linear(x, self.qkv_kernel[...], self.qkv_bias[...])
        q, k, v = (part.reshape(batch, tokens, self.heads, head_width) for part in jnp.split(qkv, 3, axis=-1))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * head_width**-0.5, k, preferred_element_type=jnp.float32)
        if causal:
            visible = jnp.tril(jnp.ones((tokens, tokens), bool))
            logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, width)
        return linear(mixed, self.attention_out_kernel[...], self.attention_out_bias[...])

    def __call__(self, x: Float[Array, "batch tokens width"], causal: bool) -> Float[Array, "batch tokens width"]:
        x = x + self.attend(self.ln_1(x), causal)
        hidden = quick_gelu(linear(self.ln_2(x), self.mlp_in_kernel[...], self.mlp_in_bias[...]))
        return x + linear(hidden, self.mlp_out_kernel[...], self.mlp_out_bias[...])


class Transformer(nnx.Module):
    """Blocks whose parameters are stacked along a leading axis of length `layers`.

    Args:
      width: of the residual stream.
      layers: how many blocks.
      heads: attention heads; must divide `width`.
      init: initialisers of a block.
      scan: run the blocks by `lax.scan` (one block is compiled, what a TPU wants) or unrolled (faster on CPU).
      remat: what the backward pass recomputes: "none" keeps everything, "dots" keeps matrix products,
        "full" keeps only the blocks' inputs.
    """

    def __init__(
        self, width: int, layers: int, heads: int, init: BlockInit, *, scan: bool, remat: Remat, rngs: nnx.Rngs
    ):
        self.layers = layers
        self.scan = scan
        self.remat = remat

        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, init, rngs=rngs)

        self.blocks = stack(rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        *,
        causal: bool = False,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch tokens width"]:
        """Runs the blocks; `constrain` pins the sharding of the activations at each block's edge."""
        graph, stacked = nnx.split(self.blocks)

        def run(x, params):
            return constrain(nnx.merge(graph, params)(x, causal))

        if self.remat == "full":
            run = jax.checkpoint(run)
        elif self.remat == "dots":
            run = jax.checkpoint(run, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        if self.scan:
            return jax.lax.scan(lambda x, params: (run(x, params), None), x, stacked)[0]
        leaves, tree = jax.tree.flatten(stacked)
        # lax.split, not indexing: its transpose is one concatenation instead of a padded sum per layer.
        split = [jax.lax.split(leaf, [1] * self.layers, axis=0) for leaf in leaves]
        for layer in range(self.layers):
            x = run(x, jax.tree.unflatten(tree, [pieces[layer][0] for pieces in split]))
        return x


def published_text_init(width: int, layers: int) -> BlockInit:
    """The text tower's initialisation in OpenAI's release (clip/model.py, `initialize_parameters`)."""
    return BlockInit(
        qkv=normal(width**-0.5),
        attention_out=normal(width**-0.5 * (2 * layers) ** -0.5),
        mlp_in=normal((2 * width) ** -0.5),
        mlp_out=normal(width**-0.5 * (2 * layers) ** -0.5),
        mlp_in_bias=uniform(width**-0.5),
        mlp_out_bias=uniform((4 * width) ** -0.5),
    )


def published_image_init(width: int) -> BlockInit:
    """The image tower's: PyTorch's defaults, Xavier-uniform for the fused qkv [3 width, width], else 1/sqrt(fan in)."""
    return BlockInit(
        qkv=uniform(math.sqrt(6 / (width + 3 * width))),
        attention_out=uniform(width**-0.5),
        mlp_in=uniform(width**-0.5),
        mlp_out=uniform((4 * width) ** -0.5),
        mlp_in_bias=uniform(width**-0.5),
        mlp_out_bias=uniform((4 * width) ** -0.5),
    )
