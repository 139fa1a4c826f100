"""Batch normalisation over the global batch (Ioffe & Szegedy 2015, algorithms 1 and 2; torch.nn.BatchNorm2d)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

EPS = 1e-5
# The weight of the newest batch in the running averages, as torch counts it.
MOMENTUM = 0.1
# The name under which `jax.checkpoint` can keep the statistics, small arrays that cost a sweep and two collectives.
STATISTICS = "batch_statistics"


def batch_statistics(
    x: Float[Array, "batch height width channels"],
) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Mean and biased variance of each channel in float32, over the whole batch wherever its rows lie.

    Both sums are taken in one sweep, after a shift by the mean of one pixel of every picture: a sweep per sum would
    read the activations twice, and the mean of squares less the square of the mean cancels where the mean is large.
    The shift lies within sqrt(height * width) standard deviations of the mean, so what cancels is some 1e-3 of the
    variance at the very worst.
    """
    y = x.astype(jnp.float32)
    shift = checkpoint_name(jax.lax.stop_gradient(jnp.mean(y[:, 0, 0], axis=0)), STATISTICS)
    y = y - shift
    mean = checkpoint_name(jnp.mean(y, axis=(0, 1, 2)), STATISTICS)
    square = checkpoint_name(jnp.mean(jnp.square(y), axis=(0, 1, 2)), STATISTICS)
    return mean + shift, jnp.maximum(square - jnp.square(mean), 0)


class BatchNorm(nnx.Module):
    """Batch normalisation of [batch, height, width, channels], in float32 whatever the input.

    Attributes:
      scale, bias: [channels] parameters.
      mean, var: [channels] running averages of the batches' means and unbiased variances. Each call in training
        replaces them.
      locked: whether the running averages are used, and left as they are, in training too.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.locked = False

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Normalises by the batch's statistics in training, by the running averages otherwise."""
        if train and not self.locked:
            mean, var = batch_statistics(x)
            count = x.size // x.shape[-1]
            # The batch is normalised by its biased variance; what is kept is the unbiased one, as torch does it.
            unbiased = var * (count / max(1, count - 1))
            self.mean[...] = jax.lax.stop_gradient((1 - MOMENTUM) * self.mean[...] + MOMENTUM * mean)
            self.var[...] = jax.lax.stop_gradient((1 - MOMENTUM) * self.var[...] + MOMENTUM * unbiased)
        else:
            mean, var = self.mean[...], self.var[...]
        # The mean is taken off first: folded into the bias, a large one would cancel there.
        y = (x.astype(jnp.float32) - mean) * (self.scale[...] * jax.lax.rsqrt(var + EPS)) + self.bias[...]
        return y.astype(x.dtype)
