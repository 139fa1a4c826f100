"""How many wrong answers beat the right one: what accuracy and recall at every k follow from."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxclip import sharding


def ranks(
    mesh: Mesh,
    queries: Float[np.ndarray, "queries width"],
    keys: Float[np.ndarray, "keys width"],
    query_groups: Int[np.ndarray, "queries"],
    key_groups: Int[np.ndarray, "keys"],
    chunk: int = 4096,
) -> Int[np.ndarray, "queries"]:
    """The rank of each query's best positive among the keys, 0 for first.

    A key is a positive of a query when their groups are equal. Equal similarities count in the order of the keys, as
    a stable sort would place them, so that a collapsed model gets chance and not a perfect score; a similarity that
    is not a number stands behind all others. The similarity matrix is computed in blocks of `chunk` x `chunk`, rows
    over all devices, and never held whole: any set size fits.

    Args:
      mesh: the devices.
      queries, keys: embeddings.
      query_groups, key_groups: each query has at least one key of its group.
      chunk: rows and columns of a block.
    """
    rows = -(-min(chunk, len(queries)) // mesh.size) * mesh.size
    columns = min(chunk, len(keys))
    batch, replicated = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    key_blocks = _pad(keys, columns, 0).reshape(-1, columns, keys.shape[1])
    group_blocks = _pad(key_groups.astype(np.int32), columns, -1).reshape(-1, columns)
    key_blocks, group_blocks = jax.device_put((key_blocks, group_blocks), replicated)
    found = []
    for start in range(0, len(queries), rows):
        block = _pad(queries[start : start + rows], rows, 0)
        groups = _pad(query_groups[start : start + rows].astype(np.int32), rows, -2)
        block, groups = jax.device_put((block, groups), batch)
        found.append(np.asarray(_rank_block(block, groups, key_blocks, group_blocks, replicated)))
    return np.concatenate(found)[: len(queries)]


def recalls(ranks: Int[np.ndarray, "queries"], ks: tuple[int, ...] = (1, 5, 10)) -> dict[int, float]:
    """The share of queries with a positive among the first k, for each k."""
    return {k: float(np.mean(ranks < k)) for k in ks}


def _pad(array: np.ndarray, multiple: int, value: int) -> np.ndarray:
    missing = -len(array) % multiple
    return np.concatenate([array, np.full((missing, *array.shape[1:]), value, array.dtype)])


@functools.partial(jax.jit, static_argnums=4)
def _rank_block(queries, query_groups, key_blocks, group_blocks, replicated):
    columns = key_blocks.shape[1]

    def similarity(keys):
        values = jnp.matmul(queries, keys.T, precision="highest")
        return jnp.where(jnp.isnan(values), -jnp.inf, values)

    def best_positive(carry, block):
        best, place = carry
        number, keys, groups = block
        values = jnp.where(query_groups[:, None] == groups, similarity(keys), -jnp.inf)
        column = jnp.argmax(values, axis=1)
        value = jnp.take_along_axis(values, column[:, None], axis=1)[:, 0]
        better = value > best
        return (jnp.where(better, value, best), jnp.where(better, number * columns + column, place)), None

    def count(beaten_by, block):
        number, keys, groups = block
        values = similarity(keys)
        earlier = number * columns + jnp.arange(columns) < place[:, None]
        ahead = (values > best[:, None]) | ((values == best[:, None]) & earlier)
        negative = (query_groups[:, None] != groups) & (groups >= 0)
        return beaten_by + jnp.sum(ahead & negative, axis=1), None

    blocks = (jnp.arange(key_blocks.shape[0]), key_blocks, group_blocks)
    last = jnp.full(queries.shape[0], key_blocks.shape[0] * columns, jnp.int32)
    start = (jnp.full(queries.shape[0], -jnp.inf, queries.dtype), last)
    (best, place), _ = jax.lax.scan(best_positive, start, blocks)
    beaten_by, _ = jax.lax.scan(count, jnp.zeros(queries.shape[0], jnp.int32), blocks)
    return jax.lax.with_sharding_constraint(beaten_by, replicated)
