"""How many wrong answers beat the right one: what accuracy and recall at every k follow from."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxclip import sharding


class Ranks(NamedTuple):
    """Of each query its best positive's rank among the keys, 0 for first, and the same of each key among the queries.

    What has no positive stands behind all others: its rank is their number.
    """

    queries: Int[np.ndarray, "queries"]
    keys: Int[np.ndarray, "keys"]


class _Best(NamedTuple):
    """The similarity of the best positive, and its place on the other side: the first one of equals."""

    value: Float[jax.Array, "..."]
    place: Int[jax.Array, "..."]

    @classmethod
    def none(cls, shape: tuple[int, ...], others: int) -> _Best:
        """Behind all of the other side."""
        return cls(jnp.full(shape, -jnp.inf), jnp.full(shape, others, jnp.int32))

    def better(self, value: jax.Array, place: jax.Array) -> _Best:
        """The better of this and one with a later place."""
        return _Best(*(jnp.where(value > self.value, *pair) for pair in ((value, self.value), (place, self.place))))

    def beaten(
        self, values: Float[jax.Array, "rows columns"], places: Int[jax.Array, "others"], axis: int
    ) -> jax.Array:
        """Where similarities are ahead of it; `axis` is the one along which the other side lies."""
        value, place = (jnp.expand_dims(one, axis) for one in self)
        places = jnp.expand_dims(places, 1 - axis)
        return (values > value) | ((values == value) & (places < place))


def ranks(
    mesh: Mesh,
    queries: Float[np.ndarray, "queries width"],
    keys: Float[np.ndarray, "keys width"],
    query_groups: Int[np.ndarray, "queries"],
    key_groups: Int[np.ndarray, "keys"],
    chunk: int | None = None,
    among_themselves: bool = False,
) -> Ranks:
    """The ranks of both sides' best positives by the inner product.

    A key and a query are positives of each other when their groups are equal. Equal similarities count in the order of
    the other side, as a stable sort would place them, so that a collapsed model gets chance and not a perfect score; a
    similarity that is not a number stands behind all others.

    The matrix of similarities is computed in blocks and never held: the devices share the queries, and the keys pass by
    in blocks of `chunk`. If both sides are ordered by their groups, only the blocks with positives are computed twice,
    and otherwise all of them.

    Args:
      mesh: the devices.
      queries, keys: embeddings.
      query_groups, key_groups: from 0.
      chunk: queries and keys of a block; by default 4,096, and 512 on a CPU, whose cache holds their similarities.
      among_themselves: whether the keys are the queries in the same order, none of which is its own positive.
    """
    chunk = chunk or (512 if mesh.devices.flat[0].platform == "cpu" else 4096)
    rows, columns = -(-min(chunk, len(queries)) // mesh.size) * mesh.size, min(chunk, len(keys))
    shared, replicated = NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH)), NamedSharding(mesh, PartitionSpec())
    groups = _padded(query_groups.astype(np.int32), rows, -2).reshape(-1, rows)
    blocks = _padded(queries, rows, 0).reshape(-1, rows, queries.shape[1])
    ours, best = sharding.from_host(((blocks, groups), _Best.none(groups.shape, len(keys))), shared)
    starts = range(0, len(keys), columns)

    def passing(start: int) -> tuple[jax.Array, jax.Array]:
        part = slice(start, start + columns)
        block = _padded(keys[part], columns, 0), _padded(key_groups[part].astype(np.int32), columns, -1)
        return sharding.from_host(block, replicated)

    best_of_keys = []
    for start in starts:
        first, last = _meeting(groups, key_groups[start : start + columns])
        best, found = _find(ours, best, passing(start), start, first, last, replicated, among_themselves)
        best_of_keys.append(found)
    beaten_by = sharding.from_host(np.zeros(groups.shape, np.int32), shared)
    key_ranks = []
    for start, found in zip(starts, best_of_keys, strict=True):
        beaten_by, counted = _count(ours, best, beaten_by, passing(start), found, start, replicated)
        key_ranks.append(np.asarray(counted))
    query_ranks = jax.jit(lambda values: values, out_shardings=replicated)(beaten_by)
    return Ranks(np.asarray(query_ranks).reshape(-1)[: len(queries)], np.concatenate(key_ranks)[: len(keys)])


def recalls(ranks: Int[np.ndarray, "queries"], ks: tuple[int, ...] = (1, 5, 10)) -> dict[int, float]:
    """The share of queries with a positive among the first k, for each k."""
    return {k: float(np.mean(ranks < k)) for k in ks}


def _padded(array: np.ndarray, multiple: int, fill: int) -> np.ndarray:
    missing = -len(array) % multiple
    return np.concatenate([array, np.full((missing, *array.shape[1:]), fill, array.dtype)]) if missing else array


def _meeting(query_groups: Int[np.ndarray, "blocks rows"], key_groups: Int[np.ndarray, "columns"]) -> tuple[int, int]:
    """Between which blocks of queries all positives of a block of keys are; the end is not one of them."""
    meets = ((query_groups >= key_groups.min()) & (query_groups <= key_groups.max())).any(axis=1)
    return (int(np.argmax(meets)), len(meets) - int(np.argmax(meets[::-1]))) if meets.any() else (0, 0)


def _similarities(queries: jax.Array, keys: jax.Array) -> jax.Array:
    values = jnp.matmul(queries, keys.T, precision="highest")
    # Without the barrier, the two passes may round differently, and a key would not be equal to itself.
    return jax.lax.optimization_barrier(jnp.where(jnp.isnan(values), -jnp.inf, values))


@functools.partial(jax.jit, donate_argnums=1, static_argnums=(6, 7))
def _find(ours, best, theirs, start, first, last, replicated, among_themselves):
    """The best positives of the queries so far, and those of a block of keys, which begins at `start`."""
    (queries, query_groups), (keys, key_groups) = ours, theirs
    rows = query_groups.shape[1]
    columns = jnp.arange(len(keys))

    def block(number, carry):
        best, best_of_keys = carry
        positive = query_groups[number][:, None] == key_groups
        if among_themselves:
            positive &= (number * rows + jnp.arange(rows))[:, None] != start + columns
        values = jnp.where(positive, _similarities(queries[number], keys), -jnp.inf)
        value = values.max(axis=1)
        place = start + jnp.where(positive & (values == value[:, None]), columns, len(keys)).min(axis=1)
        now = _Best(best.value[number], best.place[number]).better(value, place)
        best = _Best(best.value.at[number].set(now.value), best.place.at[number].set(now.place))
        value = values.max(axis=0)
        place = number * rows + jnp.where(positive & (values == value), jnp.arange(rows)[:, None], rows).min(axis=0)
        return best, best_of_keys.better(value, place)

    best, found = jax.lax.fori_loop(first, last, block, (best, _Best.none(key_groups.shape, query_groups.size)))
    return best, jax.lax.with_sharding_constraint(found, replicated)


@functools.partial(jax.jit, donate_argnums=2, static_argnums=6)
def _count(ours, best, beaten_by, theirs, best_of_keys, start, replicated):
    """How many wrong keys have been ahead of each query's best positive so far, and how many queries of each key's."""
    (queries, query_groups), (keys, key_groups) = ours, theirs
    rows = query_groups.shape[1]
    columns = start + jnp.arange(len(keys))

    def block(counted, content):
        number, queries, groups, best, beaten_by = content
        values = _similarities(queries, keys)
        negative = (groups[:, None] != key_groups) & (groups[:, None] >= 0) & (key_groups >= 0)
        of_query = best.beaten(values, columns, axis=1) & negative
        of_key = best_of_keys.beaten(values, number * rows + jnp.arange(rows), axis=0) & negative
        return counted + of_key.sum(axis=0, dtype=jnp.int32), beaten_by + of_query.sum(axis=1, dtype=jnp.int32)

    blocks = (jnp.arange(len(queries)), queries, query_groups, best, beaten_by)
    counted, beaten_by = jax.lax.scan(block, jnp.zeros(len(keys), jnp.int32), blocks)
    return beaten_by, jax.lax.with_sharding_constraint(counted, replicated)
