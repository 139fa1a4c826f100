"""What towers are made of below the level of a block: initialisers, linear maps, activations, layer normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

Initializer = Callable[[jax.Array, Sequence[int]], jax.Array]
Remat = Literal["none", "dots", "full"]
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


def normal(stddev: float) -> Initializer:
    """Initialiser: a normal distribution of mean 0 and the given standard deviation."""
    return lambda key, shape: stddev * jax.random.normal(key, shape, jnp.float32)


def uniform(bound: float) -> Initializer:
    """Initialiser: uniform on [-bound, bound]."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def zeros(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Initialiser: zeros."""
    return jnp.zeros(shape, jnp.float32)


def activate(x: Float[Array, "*shape"], name: Activation) -> Float[Array, "*shape"]:
    """The activations of published models.

    Args:
      x: of any shape.
      name: "quick_gelu", x * sigmoid(1.702 x), of OpenAI's models; "gelu" with the exact error function, of LAION's and
        PyTorch's; "gelu_tanh", its approximation (Hendrycks and Gimpel 2016, section 2), of Google's.
    """
    match name:
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)


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


def unit(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Rows scaled to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def normalized_pixels(
    images: UInt8[Array, "batch height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: DTypeLike,
) -> Float[Array, "batch height width 3"]:
    """8-bit RGB images scaled to [0, 1], less the mean and divided by the standard deviation of each channel.

    Args:
      images: uint8.
      mean, std: of red, green and blue, in [0, 1]; see `config.PixelsConfig`.
      dtype: of the result; the arithmetic is in float32.
    """
    return ((images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)).astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis; statistics in float32 whatever the input.

    Args:
      width: of the last axis.
      eps: added to the variance.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
