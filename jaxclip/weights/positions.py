"""Resizing of position embeddings to other resolutions and context lengths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip import methods, sharding
from jaxclip.errors import UserError
from jaxclip.weights import tensor_map
from jaxclip.weights.load import Weights, check_finite

# Paths of arrays with one row per patch in reading order, optionally after a row for the class token (or the mean).
_IMAGE = ("image/positions", "image/attention_pool/positions")
_TEXT = ("text/positions", "decoder/positions")


def at_size(method: Any, image_size: int | None, context_length: int | None) -> Any:
    """A method, its towers changed to another image size or context length if given.

    Raises:
      UserError: the towers do not support the size, or there is no such tower.
    """
    sizes = {"image": ("image_size", image_size), "text": ("context_length", context_length)}
    changed = {}
    for tower, (key, size) in sizes.items():
        if size is None:
            continue
        config = getattr(method, tower, None)
        if config is None:
            raise UserError(f"{key}={size}: the model has no {tower} tower")
        if tower == "text" and not hasattr(config, "resizes_positions"):
            raise UserError(f"{key}={size}: the positions of this text tower cannot be resized")
        if tower == "text" and cuts_text(method) and size > config.context_length:
            raise UserError(f"{key}={size}: the text tower has learned {config.context_length} positions, no more")
        changed[tower] = dataclasses.replace(config, **{key: size})
    return dataclasses.replace(method, **changed)


def cuts_text(method: Any) -> bool:
    """Whether text positions are truncated to a shorter context, and not resized."""
    return not getattr(getattr(method, "text", None), "resizes_positions", True)


def read_at_size(weights: Weights, method: Any, mesh: Mesh, dtype: Any = "float32") -> tuple[Any, Any]:
    """The result of `weights.read`, resized for a method from `at_size`."""
    params, stats = weights.read(mesh, dtype)
    check_finite(params, weights.source)
    check_finite(stats, weights.source)
    if method == weights.method:
        return params, stats
    wanted = tensor_map.flat(sharding.placed(mesh, *methods.abstract_variables(method), dtype)[0])
    shapes = {path: leaf.shape for path, leaf in wanted.items()}
    found = resized(tensor_map.flat(params), shapes, cut_text=cuts_text(method))
    return tensor_map.nested({path: jax.device_put(found[path], leaf.sharding) for path, leaf in wanted.items()}), stats


def resized(
    arrays: Mapping[str, jax.Array], shapes: Mapping[str, tuple[int, ...]], *, cut_text: bool = False
) -> dict[str, jax.Array]:
    """Arrays by path, with position embeddings interpolated to the given shapes.

    Image positions are resized on their grid by an antialiased bicubic kernel and text positions linearly along the
    text, both as in open_clip (`resize_pos_embed`, `resize_text_pos_embed`); other arrays do not change.

    Args:
      arrays: the arrays as read.
      shapes: the shapes in the new model, by path; arrays of other paths do not change.
      cut_text: truncate text positions to a shorter context length instead, as is usual for BERT; a longer one is not
        supported.
    """
    result = dict(arrays)
    for path, array in arrays.items():
        shape = shapes.get(path, array.shape)
        if shape == array.shape or shape[1:] != array.shape[1:]:
            continue
        if path in _IMAGE:
            result[path] = _on_grid(array, shape[0])
        elif path in _TEXT and cut_text:
            result[path] = array[: shape[0]]
        elif path in _TEXT:
            values = jax.image.resize(array.astype(jnp.float32), shape, "linear", antialias=False)
            result[path] = values.astype(array.dtype)
    return result


def _on_grid(positions: jax.Array, rows: int) -> jax.Array:
    """Resizes positions [1 + grid^2 or grid^2, width] to [rows, width]."""
    first = positions.shape[0] - math.isqrt(positions.shape[0]) ** 2
    grid, wanted = math.isqrt(positions.shape[0] - first), math.isqrt(rows - first)
    if first not in (0, 1) or wanted**2 + first != rows:
        raise UserError(
            f"position embeddings of {positions.shape[0]} rows cannot be resized to {rows}: no square grids"
        )
    width = positions.shape[1]
    square = positions[first:].astype(jnp.float32).reshape(grid, grid, width)
    square = jax.image.resize(square, (wanted, wanted, width), "cubic", antialias=True)
    return jnp.concatenate([positions[:first], square.reshape(-1, width).astype(positions.dtype)])
