"""Layouts of the similarity matrix on the devices: two-dimensional blocks or a ring."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxclip.losses.tiles import TileFunction, TileSize, sweep, tile_size

# Maximum bytes of the embeddings that a device gathers and their gradients: 3 % of the 16 GiB of the smallest TPU. It
# does not depend on the chip, so that a configuration gives the same program everywhere.
GATHER_BUDGET = 512 * 2**20

# Names of the device axes inside the loss, whatever the axes of the mesh outside.
DOWN, ACROSS = "down", "across"
# Merges the partial results of the devices along an axis; all of these devices have the same rows.
Merge = Callable[[Any, str], Any]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A grid of `down` x `across` devices, in which each device gathers its row's images and its column's texts.

    Device (i, j) computes the block of all pairs of batch / down images with batch / across texts, tile by tile. Two
    reduce-scatters return the gradients. If one side is 1, this is the all-gather scheme. It moves 2 / sqrt(devices) as
    much data as a ring.
    """

    down: int
    across: int
    tile: TileSize | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.down, self.across

    def rows(self, tree: Any) -> Any:
        """Gathers each device's own rows (images) into all rows of its block."""
        return self._gather(tree, ACROSS, self.across)

    def columns(self, tree: Any) -> Any:
        """Gathers each device's own columns (texts) into all columns of its block."""
        return self._gather(tree, DOWN, self.down)

    def sweep(
        self, tile: TileFunction, rows: Any, columns: Any, row_sums: Any, column_sums: Any, merge: Merge | None
    ) -> tuple[Any, Any]:
        """Sums over all pairs; complete if `merge` is given, else this device's partial sums.

        Args:
          tile: the function of a tile. Its rows and columns are those given here and "index", [n] positions in the
            batch.
          rows, columns: dicts of arrays, as returned by `rows` and `columns`.
          row_sums, column_sums: initial values.
          merge: merges the sums of the devices along an axis.
        """
        length = len(jax.tree.leaves(rows)[0]) // self.across
        down, across = _index(DOWN, self.down), _index(ACROSS, self.across)
        row_index = down * self.across * length + jnp.arange(self.across * length)
        homes = jnp.arange(self.down) * self.across + across
        column_index = (homes[:, None] * length + jnp.arange(length)).reshape(-1)
        size = self.tile or _tile_of(rows, columns)
        row_sums, column_sums = sweep(
            tile,
            rows=rows | {"index": row_index},
            columns=columns | {"index": column_index},
            row_sums=row_sums,
            column_sums=column_sums,
            size=size,
        )
        if merge is not None and self.across > 1:
            row_sums = merge(row_sums, ACROSS)
        if merge is not None and self.down > 1:
            column_sums = merge(column_sums, DOWN)
        return row_sums, column_sums

    def own_rows(self, tree: Any) -> Any:
        """This device's own rows of the complete sums over a block's rows."""
        return self._own(tree, ACROSS, self.across)

    def own_columns(self, tree: Any) -> Any:
        """This device's own columns of the complete sums over a block's columns."""
        return self._own(tree, DOWN, self.down)

    def total_rows(self, tree: Any) -> Any:
        """Adds up the devices' partial sums over a block's rows; each device gets its own rows."""
        return self._scatter(tree, ACROSS, self.across)

    def total_columns(self, tree: Any) -> Any:
        """Adds up the devices' partial sums over a block's columns; each device gets its own columns."""
        return self._scatter(tree, DOWN, self.down)

    def _gather(self, tree: Any, axis: str, size: int) -> Any:
        return jax.tree.map(lambda leaf: lax.all_gather(leaf, axis, tiled=True), tree) if size > 1 else tree

    def _own(self, tree: Any, axis: str, size: int) -> Any:
        def own(leaf: jax.Array) -> jax.Array:
            length = len(leaf) // size
            return lax.dynamic_slice_in_dim(leaf, _index(axis, size) * length, length)

        return jax.tree.map(own, tree) if size > 1 else tree

    def _scatter(self, tree: Any, axis: str, size: int) -> Any:
        return jax.tree.map(lambda leaf: lax.psum_scatter(leaf, axis, tiled=True), tree) if size > 1 else tree


@dataclasses.dataclass(frozen=True)
class Ring:
    """A ring, in which images stay on their device, and texts and their sums visit all devices by ppermute.

    Nothing is gathered: the memory is that of a device's own pairs, 24 bytes x width x pairs with bfloat16 embeddings.
    The traffic is that of the whole batch, so the links determine the time unless a device has thousands of pairs.
    """

    devices: int
    tile: TileSize | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.devices, 1

    def rows(self, tree: Any) -> Any:
        """Returns the argument: a block's rows are the device's own, so nothing is gathered, sliced or added up."""
        return tree

    columns = own_rows = own_columns = total_rows = total_columns = rows

    def sweep(
        self, tile: TileFunction, rows: Any, columns: Any, row_sums: Any, column_sums: Any, merge: Merge | None
    ) -> tuple[Any, Any]:
        """Complete sums over all pairs; see `Blocks.sweep`. There is nothing to merge."""
        home = _index(DOWN, self.devices)
        length = len(jax.tree.leaves(rows)[0])
        size = self.tile or _tile_of(rows, columns)
        rows = rows | {"index": home * length + jnp.arange(length)}
        onwards = [(i, (i + 1) % self.devices) for i in range(self.devices)]

        def pass_on(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: lax.ppermute(leaf, DOWN, onwards), tree) if self.devices > 1 else tree

        def visit(hop: jax.Array, carry: tuple) -> tuple:
            columns, row_sums, column_sums = carry
            # Sent before the block is computed, so that the transfer can overlap with the computation.
            following = pass_on(columns)
            index = (home - hop) % self.devices * length + jnp.arange(length)
            row_sums, column_sums = sweep(
                tile,
                rows=rows,
                columns=columns | {"index": index},
                row_sums=row_sums,
                column_sums=column_sums,
                size=size,
            )
            return following, row_sums, pass_on(column_sums)

        _, row_sums, column_sums = lax.fori_loop(0, self.devices, visit, (columns, row_sums, column_sums))
        return row_sums, column_sums


Layout = Blocks | Ring


def choose_layout(batch: int, width: int, itemsize: int, devices: int) -> Layout:
    """The default layout: the squarest grid of blocks, or a ring if a device would gather more than `GATHER_BUDGET`.

    In a grid of `down` x `across`, a device has batch / down images and batch / across texts, each with its float32
    gradient.

    Args:
      batch: pairs over all devices.
      width: of the embeddings.
      itemsize: bytes per entry of the embeddings.
      devices: the number of devices among which the batch is divided.
    """
    across = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
    down = devices // across
    gathered = (itemsize + max(4, itemsize)) * width * (batch // down + batch // across)
    if devices > 1 and gathered > GATHER_BUDGET:
        return Ring(devices)
    return Blocks(down, across)


def grid_mesh(mesh: Mesh, layout: Layout) -> Mesh:
    """The mesh's devices in the same order, as the layout's grid."""
    return Mesh(mesh.devices.reshape(layout.grid), (DOWN, ACROSS))


def total(layout: Layout, x: jax.Array) -> jax.Array:
    """The sum of every device's x."""
    return lax.psum(x, (DOWN, ACROSS)) if math.prod(layout.grid) > 1 else x


def _index(axis: str, size: int) -> jax.Array | int:
    """This device's index along an axis; 0 without a shard_map, on a single device."""
    return lax.axis_index(axis) if size > 1 else 0


def _tile_of(rows: Any, columns: Any) -> TileSize:
    image, text = rows["image"], columns["text"]
    return tile_size(len(image), len(text), image.shape[1], image.dtype.itemsize)
