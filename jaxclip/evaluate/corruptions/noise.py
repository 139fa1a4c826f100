"""Gaussian noise, shot noise and impulse noise.

A small image has the noise of a large one that was reduced a little: deviations, and the share of impulses, grow with
the root of the size. At 32 pixels this gives about the figures that the paper's authors chose for CIFAR-10-C.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float

from jaxclip.evaluate.corruptions import draws

Image = Float[Array, "size size 3"]

_DEVIATIONS = (0.08, 0.12, 0.18, 0.26, 0.38)
_PHOTONS = (60, 25, 12, 5, 3)  # of a white pixel
_SHARES = (0.03, 0.06, 0.09, 0.17, 0.27)


def gaussian_noise_parameters(strength: int, size: int) -> tuple[float]:
    """The deviation."""
    return (_DEVIATIONS[strength - 1] * math.sqrt(size / 224),)


def gaussian_noise(image: Image, key: draws.Key, deviation: Float[Array, ""]) -> Image:
    """Independent normal noise in every channel."""
    return image + deviation * draws.normal(key, image.shape)


def shot_noise_parameters(strength: int, size: int) -> tuple[Float[np.ndarray, "levels counts"], float]:
    """The cumulative distribution of the photons for each of the 256 levels, and the value of one."""
    photons = [count * 224 / size for count in _PHOTONS]
    # All strengths have a table of one size; what is cut off is less likely than a float32 between 0 and 1 can say.
    counts = 2 ** math.ceil(math.log2(scipy.stats.poisson.isf(1e-8, max(photons)) + 1))
    rates = photons[strength - 1] * np.arange(256) / 255
    table = scipy.stats.poisson.cdf(np.arange(counts), rates[:, None])
    return table.astype(np.float32), 1 / photons[strength - 1]


def shot_noise(image: Image, key: draws.Key, table: Float[Array, "levels counts"], value: Float[Array, ""]) -> Image:
    """A Poisson number of photons in every channel.

    Drawn by a binary search of the cumulative distribution: on a CPU, `jax.random.poisson` takes ten times as long.
    """
    levels = jnp.round(image * 255).astype(jnp.int32)
    chance = draws.uniform(key, image.shape)
    counted = jnp.zeros(image.shape, jnp.int32)
    step = table.shape[1] // 2
    while step:
        counted = jnp.where(chance >= table[levels, counted + step - 1], counted + step, counted)
        step //= 2
    return counted * value


def impulse_noise_parameters(strength: int, size: int) -> tuple[float]:
    """The share of the values that are lost."""
    return (_SHARES[strength - 1] * math.sqrt(size / 224),)


def impulse_noise(image: Image, key: draws.Key, share: Float[Array, ""]) -> Image:
    """A share of the values in every channel is black or white, half of them each."""
    chance = draws.uniform(key, image.shape)
    return jnp.where(chance < share / 2, 0.0, jnp.where(chance >= 1 - share / 2, 1.0, image))
