"""How the blocks of the similarity matrix lie on the devices: in two dimensions, or going round a ring."""

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

# What the embeddings that a device gathers and their gradients may take. Half a GiB is 3 % of the 16 GiB of the
# smallest TPU; it is not read off the chip, so that one configuration is one program everywhere.
GATHER_BUDGET = 512 * 2**20

# Names of the axes that the devices get inside the loss, whatever the mesh outside calls them.
DOWN, ACROSS = "down", "across"
# Sums over partial results of the devices along an axis, for arrays whose every row the axis's devices all have.
Merge = Callable[[Any, str], Any]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Devices in a grid of `down` x `across`; each gathers the pictures of its row of them and the texts of its column.

    Device (i, j) then has the block of all pairs of batch / down pictures with batch / across texts, computes it tile
    by tile, and hands the gradients back by two reduce-scatters. Where one side is 1, this is the all-gather scheme.
    It moves 2 / sqrt(devices) as much as a ring.
    """

    down: int
    across: int
    tile: TileSize | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.down, self.across

    def rows(self, tree: Any) -> Any:
        """Of each device's own rows (pictures), all those of its block."""
        return self._gather(tree, ACROSS, self.across)

    def columns(self, tree: Any) -> Any:
        """Of each device's own columns (texts), all those of its block."""
        return self._gather(tree, DOWN, self.down)

    def sweep(
        self, tile: TileFunction, rows: Any, columns: Any, row_sums: Any, column_sums: Any, merge: Merge | None
    ) -> tuple[Any, Any]:
        """Sums over all pairs: complete ones where `merge` is given, else this device's part of them.

        Args:
          tile: what to do with a tile. Rows and columns come to it as {"index": [n] place in the batch, **given}.
          rows, columns: dicts of arrays, as `rows` and `columns` returned them.
          row_sums, column_sums: where to start from.
          merge: adds up the sums of the devices along an axis.
        """
        length = len(jax.tree.leaves(rows)[0]) // self.across
        down, across = _index(DOWN, self.down), _index(ACROSS, self.across)
        row_index = down * self.across * length + jnp.arange(self.across * length)
        homes = jnp.arange(self.down) * self.across + across
        column_index = (homes[:, None] * length + jnp.arange(length)).reshape(-1)
        size = self.tile or _tile_of(rows, columns)
        row_sums, column_sums = sweep(
            tile, rows | {"index": row_index}, columns | {"index": column_index}, row_sums, column_sums, size
        )
        if merge is not None and self.across > 1:
            row_sums = merge(row_sums, ACROSS)
        if merge is not None and self.down > 1:
            column_sums = merge(column_sums, DOWN)
        return row_sums, column_sums

    def own_rows(self, tree: Any) -> Any:
        """Of complete sums over a block's rows, those of this device's own rows."""
        return self._own(tree, ACROSS, self.across)

    def own_columns(self, tree: Any) -> Any:
        """Of complete sums over a block's columns, those of this device's own columns."""
        return self._own(tree, DOWN, self.down)

    def total_rows(self, tree: Any) -> Any:
        """Adds up partial sums over a block's rows; each device gets its own rows."""
        return self._scatter(tree, ACROSS, self.across)

    def total_columns(self, tree: Any) -> Any:
        """Adds up partial sums over a block's columns; each device gets its own columns."""
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
    """Pictures stay; texts, with what is summed for them, go once round all devices by ppermute.

    Nothing is gathered: memory is that of a device's own pairs, 24 bytes x width x pairs with bfloat16 embeddings. The
    traffic is that of the whole batch, so links and not matrix units set the time unless a device has thousands of
    pairs.
    """

    devices: int
    tile: TileSize | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.devices, 1

    def rows(self, tree: Any) -> Any:
        """Nothing is gathered: a block's rows are the device's own, with nothing to slice or to add up either."""
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
            # Asked for before the block is computed, so that the next texts may travel meanwhile.
            following = pass_on(columns)
            index = (home - hop) % self.devices * length + jnp.arange(length)
            row_sums, column_sums = sweep(tile, rows, columns | {"index": index}, row_sums, column_sums, size)
            return following, row_sums, pass_on(column_sums)

        _, row_sums, column_sums = lax.fori_loop(0, self.devices, visit, (columns, row_sums, column_sums))
        return row_sums, column_sums


Layout = Blocks | Ring


def choose_layout(batch: int, width: int, itemsize: int, devices: int, more: int = 0) -> Layout:
    """The rule: the squarest grid of blocks, unless what it gathers is over `GATHER_BUDGET`; a ring then.

    A device of a grid of `down` x `across` holds batch / down pictures and batch / across texts, each with its
    float32 gradient.

    Args:
      batch: pairs over all devices.
      width: of the embeddings.
      itemsize: bytes per entry of the embeddings.
      devices: that the batch is divided among.
      more: bytes of each pair's further rows that are gathered (a teacher's embeddings).
    """
    across = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
    down = devices // across
    gathered = ((itemsize + max(4, itemsize)) * width + more) * (batch // down + batch // across)
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
    """This device's place along an axis. A single device has no axes: there is nothing to map over."""
    return lax.axis_index(axis) if size > 1 else 0


def _tile_of(rows: Any, columns: Any) -> TileSize:
    image, text = rows["image"], columns["text"]
    return tile_size(len(image), len(text), image.shape[1], image.dtype.itemsize)
