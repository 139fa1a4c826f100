"""Layers below the level of a block: initializers, linear maps, activations, dropout, layer normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt8

from jaxclip.errors import UserError

Initializer = Callable[[jax.Array, Sequence[int]], jax.Array]
Remat = Literal["none", "products", "dots", "full"]
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


def normal(stddev: float) -> Initializer:
    """Initializer: a normal distribution of mean 0 and the given standard deviation.

    >>> normal(0.02)(jax.random.key(0), (3, 4)).shape
    (3, 4)
    """
    return lambda key, shape: stddev * jax.random.normal(key, shape, jnp.float32)


def uniform(bound: float) -> Initializer:
    """Initializer: uniform on [-bound, bound].

    >>> bool(jnp.all(jnp.abs(uniform(0.1)(jax.random.key(0), (3, 4))) <= 0.1))
    True
    """
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def zeros(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Initializer: zeros."""
    return jnp.zeros(shape, jnp.float32)


def activate(x: Float[Array, "*shape"], name: Activation) -> Float[Array, "*shape"]:
    """The activations of published models.

    Args:
      x: of any shape.
      name: "quick_gelu", x * sigmoid(1.702 x), of OpenAI's models; "gelu" with the exact error function, of LAION's and
        PyTorch's; "gelu_tanh", its approximation (Hendrycks and Gimpel 2016, section 2), of Google's.

    >>> activate(jnp.array([0.0, 10.0]), "gelu").tolist()
    [0.0, 10.0]
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
    *,
    flat: bool = True,
) -> Float[Array, "*batch outputs"]:
    """x @ kernel + bias in the dtype of x.

    `flat` computes it as one matrix: the CPU's compiler takes twice as long over the gradients of a product with a 3-D
    left side. The TPU's, given one matrix, copies x where its rows are no multiple of eight.

    >>> linear(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)).tolist()
    [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
    """
    y = (x.reshape(-1, x.shape[-1]) if flat else x) @ kernel.astype(x.dtype)
    if bias is not None:
        y = y + bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def unit(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Rows scaled to length 1, in float32.

    >>> unit(jnp.array([[3.0, 4.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
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

    >>> normalized_pixels(jnp.full((1, 1, 1, 3), 255, jnp.uint8), (0.5,) * 3, (0.5,) * 3, jnp.float32).tolist()
    [[[[1.0, 1.0, 1.0]]]]
    """
    return ((images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)).astype(dtype)


def dropout(
    x: Float[Array, "batch *rest"], rate: float, keys: Key[Array, "batch"] | None, place: int
) -> Float[Array, "batch *rest"]:
    """Sets a random share of the values to 0 and scales the others up (Srivastava et al. 2014).

    Each record has a key of its own, so that what is dropped of it depends on no other record: it is the same in every
    micro-batch and on any number of devices.

    Args:
      x: one row per record.
      rate: the share, at least 0 and below 1.
      keys: one per record; None for no dropout.
      place: folded into the keys, to tell apart several uses of them.

    >>> dropout(jnp.ones((2, 3)), 0.5, None, 0).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    >>> kept = dropout(jnp.ones((2, 100)), 0.5, jax.random.split(jax.random.key(0), 2), 0)
    >>> sorted(set(kept.ravel().tolist()))
    [0.0, 2.0]
    """
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def check_drop(drop: float) -> None:
    """Raises UserError unless a share that dropout leaves out is at least 0 and below 1."""
    if not 0 <= drop < 1:
        raise UserError(f"drop={drop} must be at least 0 and below 1")


class Linear(nnx.Module):
    """A linear map with its parameters, for projections and heads.

    Args:
      inputs, outputs: the widths.
      kernel: initializer of the matrix, [inputs, outputs].
      bias: initializer of the bias, [outputs]; None for a map without.

    >>> head = Linear(3, 4, kernel=normal(0.1), rngs=nnx.Rngs(params=0))
    >>> head(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: Initializer, bias: Initializer | None = None, rngs: nnx.Rngs
    ):
        self.has_bias = bias is not None
        self.kernel = nnx.Param(kernel(rngs.params(), (inputs, outputs)))
        if bias is not None:
            self.bias = nnx.Param(bias(rngs.params(), (outputs,)))

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """x @ kernel + bias in the dtype of x."""
        return linear(x, self.kernel[...], self.bias[...] if self.has_bias else None)


class TwoLayers(nnx.Module):
    """A head of two linear maps with a ReLU between them (ConVIRT, Zhang et al. 2020; MoCo v2, Chen et al. 2020).

    Args:
      inputs: width of the tower's vector and of the hidden layer.
      outputs: width of the space in which vectors are compared.

    >>> TwoLayers(3, 4, rngs=nnx.Rngs(params=0))(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        start = uniform(inputs**-0.5)
        self.hidden = Linear(inputs, inputs, kernel=start, bias=start, rngs=rngs)
        self.out = Linear(inputs, outputs, kernel=start, bias=start, rngs=rngs)

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        return self.out(jax.nn.relu(self.hidden(x)))


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis; statistics in float32 whatever the input.

    Args:
      width: of the last axis.
      eps: added to the variance.

    >>> LayerNorm(2)(jnp.array([[1.0, 3.0]])).round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        y = x.astype(jnp.float32)
        # Both statistics from one reading. The difference may be rounded to below 0.
        mean = jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.maximum(jnp.mean(jnp.square(y), axis=-1, keepdims=True) - jnp.square(mean), 0)
        y = (y - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
