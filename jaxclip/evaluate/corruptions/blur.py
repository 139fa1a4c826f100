"""Defocus blur, blur as by frosted glass, motion blur and zoom blur; all lengths grow with the size of the image."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float, Int

from jaxclip.evaluate.corruptions import draws, resampling

Image = Float[Array, "size size 3"]

_DEFOCUS = ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5))  # radius, deviation of the blur of its edge
_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # deviation, displacement, times
_MOTION = ((10.0, 3.0), (15.0, 5.0), (15.0, 8.0), (15.0, 12.0), (20.0, 15.0))  # radius, deviation
_ZOOM = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03))  # the greatest factor, step
_FINE = 16  # samples of a disk and of a trail along a side of a pixel


def defocus_blur_parameters(strength: int, size: int) -> tuple[Float[np.ndarray, "side side"]]:
    """The disk, sum 1, of one side for all strengths."""
    radius, edge = (size / 224 * length for length in _DEFOCUS[strength - 1])
    reach = math.ceil(size / 224 * (_DEFOCUS[-1][0] + 2 * _DEFOCUS[-1][1])) + 1
    side = 2 * reach + 1
    places = (np.arange(side * _FINE) + 0.5) / _FINE - side / 2
    disk = (np.square(places[:, None]) + np.square(places) <= radius**2).astype(np.float64)
    disk = scipy.ndimage.gaussian_filter(disk, edge * _FINE, mode="constant")
    # Each sample is divided among the pixels around it, so that a disk smaller than a pixel blurs as well.
    tents = np.maximum(0, 1 - abs(np.arange(side)[:, None] - side // 2 - places))
    kernel = tents @ disk @ tents.T
    return ((kernel / kernel.sum()).astype(np.float32),)


def defocus_blur(image: Image, key: draws.Key, disk: Float[Array, "side side"]) -> Image:
    """A convolution with a disk; the image is mirrored at its border."""
    reach = disk.shape[0] // 2
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    channels = jnp.moveaxis(padded, -1, 0)[:, None]
    result = jax.lax.conv(channels, disk[None, None], (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(result[:, 0], 0, -1)


def glass_blur_parameters(
    strength: int, size: int
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "times"]]:
    """The blur as a matrix, and the displacement of each time in pixels."""
    deviation, displacement, times = _GLASS[strength - 1]
    displacements = [displacement * size / 224 if number < times else 0.0 for number in range(3)]
    return resampling.gaussian(size, deviation * size / 224), np.array(displacements, np.float32)


def glass_blur(
    image: Image, key: draws.Key, blur: Float[Array, "size size"], displacements: Float[Array, "times"]
) -> Image:
    """Pixels that change places with others nearby, between two Gaussian blurs.

    The paper's authors swap pixels one after the other. Here every pixel takes the color of a random one nearby, all at
    once, which looks alike. Displacements are rounded at random, so that they shrink with the image.
    """
    size = image.shape[0]
    places = jnp.arange(size)
    result = resampling.applied(blur, image)
    for number in range(len(displacements)):
        far, rounding = draws.uniform(draws.fold(key, number), (2, 2, size, size))
        offsets = jnp.floor(displacements[number] * (2 * far - 1) + rounding).astype(jnp.int32)
        rows, columns = (jnp.clip(place, 0, size - 1) for place in (places[:, None] + offsets[0], places + offsets[1]))
        result = result[rows, columns]
    return resampling.applied(blur, result)


def motion_blur_parameters(strength: int, size: int) -> tuple[float, float, Float[np.ndarray, "reach"]]:
    """As `smeared` takes them."""
    radius, deviation = _MOTION[strength - 1]
    return smear_parameters(radius, deviation, _MOTION[-1][0], size)


def motion_blur(
    image: Image,
    key: draws.Key,
    length: Float[Array, ""],
    deviation: Float[Array, ""],
    reach: Float[Array, "reach"],
) -> Image:
    """A trail of half a Gaussian in a direction of at most 45 degrees to the rows."""
    return smeared(image, draws.uniform(key, low=-math.pi / 4, high=math.pi / 4), length, deviation, reach)


def smear_parameters(
    radius: float, deviation: float, most: float, size: int
) -> tuple[float, float, Float[np.ndarray, "reach"]]:
    """What `smeared` takes beside image and angle.

    Args:
      radius: half the length of the trail, in pixels of an image of 224.
      deviation: of the Gaussian, likewise.
      most: the greatest radius of all strengths.
      size: of the image.
    """
    return (
        2 * radius * size / 224,
        deviation * size / 224,
        np.arange(math.ceil(2 * most * size / 224) + 1, dtype=np.float32),
    )


def smeared(
    image: Float[Array, "size size channels"],
    angle: Float[Array, ""],
    length: Float[Array, ""],
    deviation: Float[Array, ""],
    reach: Float[Array, "reach"],
) -> Float[Array, "size size channels"]:
    """The weighted mean of each pixel and those ahead of it on a line.

    Args:
      image: continued at its border.
      angle: of the line to the rows, at most 45 degrees, in radians.
      length: pixels up to which the line reaches.
      deviation: of the Gaussian whose half the weights are, in pixels.
      reach: the columns that may be met, from 0.
    """
    size, channels, most = image.shape[0], image.shape[2], len(reach)
    padded = jnp.pad(image, ((most, most), (0, most), (0, 0)), mode="edge")
    # The trail is sampled finely, and each sample divided between two columns, for trails shorter than a pixel.
    across = (jnp.arange(most * _FINE) + 0.5) / _FINE
    far = across / jnp.cos(angle)
    trail = jnp.where(far <= length, jnp.exp(-0.5 * jnp.square(far / deviation)), 0.0)
    weights = jnp.sum(jnp.maximum(0, 1 - abs(reach[:, None] - across)) * trail, axis=1)
    weights = weights / jnp.sum(weights)

    def add(column: Int[Array, ""], total: Array) -> Array:
        row = column * jnp.tan(angle)
        above = jnp.floor(row)
        start = most + above.astype(jnp.int32), column, jnp.int32(0)
        rows = jax.lax.dynamic_slice(padded, start, (size + 1, size, channels))
        between = row - above
        return total + weights[column] * ((1 - between) * rows[:-1] + between * rows[1:])

    columns = jnp.ceil(length).astype(jnp.int32) + 1
    return jax.lax.fori_loop(0, columns, add, jnp.zeros_like(image))


def zoom_blur_parameters(
    strength: int, size: int
) -> tuple[Float[np.ndarray, "zooms size size"], Float[np.ndarray, "zooms"]]:
    """The matrices of the zooms, as many for all strengths, and their weights, whose sum is 1."""
    factors = [_factors(*row) for row in _ZOOM]
    most, mine = max(map(len, factors)), factors[strength - 1]
    matrices = np.zeros((most, size, size), np.float32)
    matrices[: len(mine)] = [resampling.zoom(size, factor) for factor in mine]
    weights = np.where(np.arange(most) < len(mine), 1.0, 0.0)
    weights[0] = 2  # the image itself and its zoom by 1
    return matrices, (weights / weights.sum()).astype(np.float32)


def zoom_blur(
    image: Image, key: draws.Key, matrices: Float[Array, "zooms size size"], weights: Float[Array, "zooms"]
) -> Image:
    """The mean of the image and its enlargements about the center."""

    def add(total: Image, zoom: tuple[Array, Array]) -> tuple[Image, None]:
        matrix, weight = zoom
        return total + weight * resampling.applied(matrix, image), None

    return jax.lax.scan(add, jnp.zeros_like(image), (matrices, weights))[0]


def _factors(most: float, step: float) -> Float[np.ndarray, "zooms"]:
    return 1 + step * np.arange(round((most - 1) / step) + 1)
