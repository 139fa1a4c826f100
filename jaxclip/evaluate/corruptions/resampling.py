"""Linear maps along the rows and columns of an image as matrices, which accelerators multiply fast.

They are computed on the host in float64, once for a size and a strength.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float
from PIL import Image

Matrix = Float[np.ndarray, "size size"]


def applied(
    matrix: Float[Array, "size size"], image: Float[Array, "size size *channels"]
) -> Float[Array, "size size *channels"]:
    """The same map along both axes."""
    rows = jnp.einsum("ij,j...->i...", matrix, image, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("kj,ij...->ik...", matrix, rows, precision=jax.lax.Precision.HIGHEST)


def gaussian(size: int, deviation: float, mode: str = "nearest", truncate: float = 4.0) -> Matrix:
    """A Gaussian blur of a deviation in pixels, with scipy's modes at the border."""
    weights = scipy.ndimage.gaussian_filter1d(np.eye(size), deviation, axis=0, mode=mode, truncate=truncate)
    return weights.astype(np.float32)


def zoom(size: int, factor: float) -> Matrix:
    """Enlargement about the center, linear between pixels; a factor from 1."""
    center = (size - 1) / 2
    places = center + (np.arange(size) - center) / factor
    # A tent of one pixel to either side.
    return np.maximum(0, 1 - abs(places[:, None] - np.arange(size))).astype(np.float32)


def pixelation(size: int, blocks: int) -> Matrix:
    """Reduction to so many pixels and enlargement to `size` again, both by PIL's box filter."""
    down = Image.fromarray(np.eye(size, dtype=np.float32)).resize((size, blocks), Image.Resampling.BOX)
    up = Image.fromarray(np.eye(blocks, dtype=np.float32)).resize((blocks, size), Image.Resampling.BOX)
    return (np.asarray(up) @ np.asarray(down)).astype(np.float32)
