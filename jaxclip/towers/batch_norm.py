"""Batch normalization over the global batch (Ioffe & Szegedy 2015, algorithms 1 and 2; torch.nn.BatchNorm2d)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxclip.errors import UserError

EPS = 1e-5
# The weight of the newest batch in the running averages, as torch counts it.
MOMENTUM = 0.1
# The name under which `jax.checkpoint` can keep the statistics, small arrays that cost a sweep and two collectives.
STATISTICS = "batch_statistics"


def batch_statistics(
    x: Float[Array, "batch height width channels"],
) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Mean and biased variance of each channel in float32, over the whole batch wherever its rows lie.

    Both sums are taken in one sweep, after a shift by the mean of one pixel of every image: a sweep per sum would
    read the activations twice, and the mean of squares less the square of the mean cancels if the mean is large.
    The shift lies within sqrt(height * width) standard deviations of the mean, so what cancels is some 1e-3 of the
    variance at the very worst.

    >>> mean, variance = batch_statistics(jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1))
    >>> mean.item(), variance.item()
    (2.0, 1.0)
    """
    y = x.astype(jnp.float32)
    shift = checkpoint_name(jax.lax.stop_gradient(jnp.mean(y[:, 0, 0], axis=0)), STATISTICS)
    y = y - shift
    mean = checkpoint_name(jnp.mean(y, axis=(0, 1, 2)), STATISTICS)
    square = checkpoint_name(jnp.mean(jnp.square(y), axis=(0, 1, 2)), STATISTICS)
    return mean + shift, jnp.maximum(square - jnp.square(mean), 0)


class BatchNorm(nnx.Module):
    """Batch normalization of [batch, height, width, channels], in float32 whatever the input.

    Args:
      channels: of the input.
      groups: parts that the batch is divided into, in the order of its rows; each is normalized by its own statistics.
        Methods whose loss would leak through the statistics of the whole batch need more than one (MoCo, He et al.
        2020, section 3.3). The number is not that of the devices, so that the result does not depend on these.

    Attributes:
      scale, bias: [channels] parameters.
      mean, var: [channels] running averages of the batches' means and unbiased variances, those of groups averaged.
        Each call in training replaces them.
      locked: whether the running averages are used, and left as they are, in training too.

    >>> norm = BatchNorm(1)
    >>> norm(jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1), train=True).round(3).ravel().tolist()
    [-1.0, 1.0]
    >>> f"{norm.mean[...].item():.3f}"  # a tenth of the way from 0 to 2
    '0.200'
    """

    def __init__(self, channels: int, groups: int = 1):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.groups = groups
        self.locked = False

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Normalizes by the batch's statistics in training, by the running averages otherwise.

        Raises:
          UserError: `groups` does not divide the batch, in training.
        """
        if not train or self.locked:
            return self._normalized(x, self.mean[...], self.var[...])
        if self.groups == 1:
            mean, var = batch_statistics(x)
            self._keep(mean, var, x.size // x.shape[-1])
            return self._normalized(x, mean, var)
        if len(x) % self.groups:
            raise UserError(f"config.method: norm_groups={self.groups} must divide the batch of {len(x)} images")
        parts = x.reshape(self.groups, -1, *x.shape[1:])
        means, variances = jax.vmap(batch_statistics)(parts)
        self._keep(jnp.mean(means, axis=0), jnp.mean(variances, axis=0), x.size // x.shape[-1] // self.groups)
        return jax.vmap(self._normalized)(parts, means, variances).reshape(x.shape)

    def _keep(self, mean: Float[Array, "channels"], var: Float[Array, "channels"], count: int) -> None:
        """Moves the running averages; `count` is how many pixels each of the statistics is of."""
        # The batch is normalized by its biased variance; what is kept is the unbiased one, as torch does it.
        unbiased = var * (count / max(1, count - 1))
        # Not `mean[...] = `: in a traced program that takes time by the length of the program so far; see `Rngs`.
        self.mean.set_value(jax.lax.stop_gradient((1 - MOMENTUM) * self.mean[...] + MOMENTUM * mean))
        self.var.set_value(jax.lax.stop_gradient((1 - MOMENTUM) * self.var[...] + MOMENTUM * unbiased))

    def _normalized(
        self,
        x: Float[Array, "batch height width channels"],
        mean: Float[Array, "channels"],
        var: Float[Array, "channels"],
    ) -> Float[Array, "batch height width channels"]:
        # The mean is taken off first: folded into the bias, a large one would cancel there.
        y = (x.astype(jnp.float32) - mean) * (self.scale[...] * jax.lax.rsqrt(var + EPS)) + self.bias[...]
        return y.astype(x.dtype)
