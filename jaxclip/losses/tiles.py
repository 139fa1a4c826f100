"""Sweeps over the tiles of one device's block of the similarity matrix, which is never stored as a whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# (rows, columns, row sums, column sums, mask of the entries that count or None for all) -> new row and column sums.
# All are pytrees of arrays whose leading axis is the tile's rows or columns.
TileFunction = Callable[[Any, Any, Any, Any, jax.Array | None], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class TileSize:
    """The maximum number of rows and columns of a tile."""

    rows: int
    columns: int


def tile_size(rows: int, columns: int, width: int, itemsize: int) -> TileSize:
    """The default tile: the whole block up to 4 MiB of float32 logits, else a quarter of the smaller side's embeddings.

    That quarter is limited to between 4 and 64 MiB, and to an eighth of the block: large enough for matrix units, but
    never the largest use of memory. Tiles have at most 2,048 rows. Taller ones do not re-use a column better, and make
    the accumulators' slices longer.

    Args:
      rows, columns: of the block.
      width: of the embeddings.
      itemsize: bytes per entry of the embeddings.
    """
    if rows * columns <= 2**20:
        return TileSize(rows, columns)
    embeddings = min(rows, columns) * width * itemsize
    logits = min(max(embeddings // 4, 4 * 2**20), 64 * 2**20, 4 * rows * columns // 8) // 4
    # Rather wider than tall, because the loop over rows is the inner one.
    tall = min(rows, 2048, max(1, math.isqrt(logits)))
    return TileSize(tall, max(1, min(columns, logits // tall)))


def sweep(
    tile: TileFunction, rows: Any, columns: Any, row_sums: Any, column_sums: Any, size: TileSize
) -> tuple[Any, Any]:
    """Calls `tile` for each pair of a slice of the rows and a slice of the columns, and accumulates the sums.

    If the slices do not divide a side evenly, the last ones overlap, and the mask excludes entries seen before.

    Args:
      tile: the function of a tile.
      rows, columns: pytrees with a leading axis of the block's rows or columns.
      row_sums, column_sums: initial sums, with the same leading axes.
      size: the maximum tile.

    Returns:
      The row sums and the column sums.
    """
    all_rows, all_columns = len(jax.tree.leaves(rows)[0]), len(jax.tree.leaves(columns)[0])
    row_steps, height = _split(all_rows, size.rows)
    column_steps, breadth = _split(all_columns, size.columns)
    if row_steps == column_steps == 1:
        # Without loops and slices, the compiler sees that a second sweep computes the same products, and re-uses them.
        return tile(rows, columns, row_sums, column_sums, None)
    ragged = row_steps * height != all_rows or column_steps * breadth != all_columns

    def down(i: jax.Array, carry: tuple, fresh_columns: jax.Array, part: Any) -> tuple:
        row_sums, column_part_sums = carry
        start = jnp.minimum(i * height, all_rows - height)
        counts = None
        if ragged:
            fresh_rows = start + jnp.arange(height) >= i * height
            counts = fresh_rows[:, None] & fresh_columns[None, :]
        row_part_sums, column_part_sums = tile(
            _take(rows, start, height), part, _take(row_sums, start, height), column_part_sums, counts
        )
        return _put(row_sums, row_part_sums, start), column_part_sums

    def across(j: jax.Array, carry: tuple) -> tuple:
        row_sums, column_sums = carry
        start = jnp.minimum(j * breadth, all_columns - breadth)
        fresh_columns = start + jnp.arange(breadth) >= j * breadth
        part = _take(columns, start, breadth)
        row_sums, part_sums = lax.fori_loop(
            0,
            row_steps,
            lambda i, carry: down(i, carry, fresh_columns, part),
            (row_sums, _take(column_sums, start, breadth)),
        )
        return row_sums, _put(column_sums, part_sums, start)

    return lax.fori_loop(0, column_steps, across, (row_sums, column_sums))


def _split(length: int, limit: int) -> tuple[int, int]:
    """The number of slices and their length, as equal as possible."""
    steps = -(-length // limit)
    return steps, -(-length // steps)


def _take(tree: Any, start: jax.Array, length: int) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length), tree)


def _put(tree: Any, parts: Any, start: jax.Array) -> Any:
    return jax.tree.map(lambda leaf, part: lax.dynamic_update_slice_in_dim(leaf, part, start, 0), tree, parts)
