"""Contrast, elastic transform, pixelation and JPEG compression."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float, UInt8

from jaxclip.evaluate.corruptions import draws, resampling

Image = Float[Array, "size size 3"]

_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
# Factor and deviation of the smooth displacements, and the greatest displacement of a corner of the affine map. The
# authors wrote 244 for 224.
_ELASTIC = tuple(
    tuple(244 * share for share in shares)
    for shares in ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
)
_PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # pixels left along a side
_JPEG = (25, 18, 15, 10, 7)  # quality


def contrast_parameters(strength: int, size: int) -> tuple[float]:
    """The factor."""
    return (_CONTRAST[strength - 1],)


def contrast(image: Image, key: draws.Key, factor: Float[Array, ""]) -> Image:
    """The differences to the mean of each channel, reduced."""
    means = jnp.mean(image, axis=(0, 1), keepdims=True)
    return means + factor * (image - means)


def elastic_transform_parameters(strength: int, size: int) -> tuple[Float[np.ndarray, "size size"], float, float]:
    """The smoothing as a matrix, the factor of what is smoothed, and the greatest displacement of a corner.

    The deviation of the displacements grows with the size.
    """
    factor, deviation, corner = _ELASTIC[strength - 1]
    smoothing, published = _smoothing(size, deviation * size / 224), _smoothing(224, deviation)
    variances = [np.square(matrix[len(matrix) // 2]).sum() for matrix in (smoothing, published)]
    return smoothing, float(factor * size / 224 * variances[1] / variances[0]), corner * size / 224


def _smoothing(size: int, deviation: float) -> Float[np.ndarray, "size size"]:
    return resampling.gaussian(size, deviation, mode="reflect", truncate=3.0)


def elastic_transform(
    image: Image,
    key: draws.Key,
    smoothing: Float[Array, "size size"],
    factor: Float[Array, ""],
    corner: Float[Array, ""],
) -> Image:
    """A random affine map together with smooth random displacements, linear between pixels.

    As published, the two weakest are mostly affine and the others mostly wrinkles.
    """
    places = displaced(image.shape[0], key, smoothing, factor, corner)
    sampled = jax.vmap(
        lambda channel: jax.scipy.ndimage.map_coordinates(channel, list(places), order=1, mode="reflect"), -1, -1
    )
    return sampled(image)


def displaced(
    size: int,
    key: draws.Key,
    smoothing: Float[Array, "size size"],
    factor: Float[Array, ""],
    corner: Float[Array, ""],
) -> Float[Array, "2 size size"]:
    """Where each pixel of an elastic transform is taken from: rows and columns."""
    # Three corners of a square about the center, each displaced by itself, make an affine map.
    lower_right, lower_left, upper_left = corner * draws.uniform(draws.fold(key, 0), (3, 2), low=-1.0)
    along = (jnp.arange(size) - size // 2) / (size // 3)
    by_row, by_column = (lower_left - upper_left) / 2, (lower_right - lower_left) / 2
    affine = (
        ((lower_right + upper_left) / 2)[:, None, None]
        + by_row[:, None, None] * along[:, None]
        + by_column[:, None, None] * along
    )
    noise = draws.uniform(draws.fold(key, 1), (2, size, size), low=-1.0)
    waves = jax.vmap(resampling.applied, in_axes=(None, 0))(smoothing, noise)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij"))
    return grid + affine + factor * waves


def pixelate_parameters(strength: int, size: int) -> tuple[Float[np.ndarray, "size size"]]:
    """The reduction and enlargement as a matrix; what the side of a block exceeds a pixel by grows with the size."""
    block = 1 + (1 / _PIXELATE[strength - 1] - 1) * size / 224
    return (resampling.pixelation(size, int(size / block + 1e-6)),)


def pixelate(image: Image, key: draws.Key, matrix: Float[Array, "size size"]) -> Image:
    """Blocks of the mean color."""
    return resampling.applied(matrix, image)


def jpeg_quality(strength: int, size: int) -> int:
    """The quality of libjpeg, whose quantization grows with the size of the image."""
    # libjpeg's factor in percent of its quantization tables: 5000 / quality, and 200 - 2 quality from 50.
    factor = 5000 / _JPEG[strength - 1] * size / 224
    return max(1, round(5000 / factor if factor > 100 else 100 - factor / 2))


def jpeg_compression(images: UInt8[np.ndarray, "n size size 3"], quality: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Images written as JPEG and read again by PIL, on threads of the host."""

    def one(image: UInt8[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size 3"]:
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
        with PIL.Image.open(file) as opened:
            return np.asarray(opened)

    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(one, images)))
