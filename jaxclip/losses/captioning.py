"""Cross-entropy of tokens with a softmax over a vocabulary, without the tokens x vocabulary logits in memory.

The vocabulary is swept in tiles: a first sweep computes the logsumexp of each token (a running maximum and sum, as
Milakov and Gimelshein 2018, algorithm 3), and the backward pass computes each tile of the logits again. The result is
that of the dense form up to rounding, whatever the tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxclip.sharding import BATCH

# Of the float32 logits of one tile: 64 MiB, large enough for matrix units.
_TILE_ENTRIES = 1 << 24
# Columns of a tile are a multiple of what a TPU's registers hold.
_LANES = 128


def vocabulary_cross_entropy(
    states: Float[Array, "batch tokens width"],
    table: Float[Array, "vocabulary width"],
    bias: Float[Array, "vocabulary"],
    targets: Int[Array, "batch tokens"],
    *,
    mesh: Mesh | None = None,
    tile: int = 0,
) -> Float[Array, "batch tokens"]:
    """-log softmax(states @ table.T + bias)[target] of each token, in nats.

    Args:
      states: of a decoder; the products are of their dtype, and all sums in float32 (float64 for float64 states).
      table: a row per word, such as a token embedding.
      bias: of each word.
      targets: word ids, each at least 0 and below the vocabulary's size.
      mesh: the devices that the batch is divided among; None for one device, and for a part of a computation that is
        on one already.
      tile: words per tile, which does not change the result; 0 for a choice by the number of tokens.

    >>> states, table = jnp.ones((1, 2, 4)), jnp.zeros((10, 4))
    >>> losses = vocabulary_cross_entropy(states, table, jnp.zeros(10), jnp.array([[3, 9]]))
    >>> losses.shape, f"{losses[0, 0]:.4f}"
    ((1, 2), '2.3026')
    """
    if mesh is None or mesh.size == 1:
        return _of_rows(states, table, bias, targets, tile)
    rows, axes = PartitionSpec(*BATCH), mesh.axis_names

    def on_device(states: Array, table: Array, bias: Array, targets: Array) -> Array:
        # Their gradients are summed over the devices once, after all tiles.
        table, bias = (jax.lax.pcast(x, axes, to="varying") for x in (table, bias))
        return _of_rows(states, table, bias, targets, tile)

    whole = PartitionSpec()
    return jax.shard_map(on_device, mesh=mesh, in_specs=(rows, whole, whole, rows), out_specs=rows)(
        states, table, bias, targets
    )


def reversed_texts(tokens: Int[Array, "batch length"], end: Int[Array, "batch"]) -> Int[Array, "batch length"]:
    """Texts from their end token to their start; what is behind the end stays where it is.

    >>> reversed_texts(jnp.array([[1, 7, 8, 2, 0]]), jnp.array([3])).tolist()
    [[2, 8, 7, 1, 0]]
    """
    places = jnp.arange(tokens.shape[1])
    places = jnp.where(places <= end[:, None], end[:, None] - places, places)
    return jnp.take_along_axis(tokens, places, axis=1)


def _of_rows(states: Array, table: Array, bias: Array, targets: Array, tile: int) -> Array:
    flat = states.reshape(-1, states.shape[-1])
    tile = min(tile or max(_LANES, _TILE_ENTRIES // max(1, len(flat)) // _LANES * _LANES), len(table))
    return _losses(tile, flat, table, bias, targets.ravel()).reshape(targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(tile: int, states: Array, table: Array, bias: Array, targets: Array) -> Array:
    return _forward(tile, states, table, bias, targets)[0]


def _forward(tile: int, states: Array, table: Array, bias: Array, targets: Array) -> tuple[Array, tuple]:
    # Of the states' kind inside a shard_map, too.
    zero = jnp.sum(states[:, :0], axis=1, dtype=_accumulator(states))

    def visit(sums: tuple, words: _Words) -> tuple:
        high, total, own = sums
        logits = words.logits(states)
        new_high = jnp.maximum(high, jnp.max(logits, axis=1))
        total = total * jnp.exp(high - new_high) + jnp.sum(jnp.exp(logits - new_high[:, None]), axis=1)
        own = own + jnp.sum(jnp.where(words.are(targets), logits, 0), axis=1)
        return new_high, total, own

    high, total, own = _sweep(tile, table, bias, visit, (zero - jnp.inf, zero, zero))
    normalizer = high + jnp.log(total)
    return normalizer - own, (states, table, bias, targets, normalizer)


def _backward(tile: int, kept: tuple, by_loss: Array) -> tuple:
    states, table, bias, targets, normalizer = kept
    sums = _accumulator(states)

    def visit(gradients: tuple, words: _Words) -> tuple:
        by_states, by_table, by_bias = gradients
        by_logits = jnp.exp(words.logits(states) - normalizer[:, None]) - words.are(targets)
        by_logits = by_logits * by_loss[:, None]
        factor = by_logits.astype(states.dtype)
        by_states = by_states + jnp.matmul(factor, words.rows(states.dtype), preferred_element_type=sums)
        by_table = words.add_to(by_table, jnp.matmul(factor.T, states, preferred_element_type=sums))
        return by_states, by_table, words.add_to(by_bias, jnp.sum(by_logits, axis=0))

    start = tuple(jnp.zeros_like(x, dtype=sums) for x in (states, table, bias))
    found = _sweep(tile, table, bias, visit, start)
    by_states, by_table, by_bias = (g.astype(x.dtype) for g, x in zip(found, (states, table, bias), strict=True))
    return by_states, by_table, by_bias, None


_losses.defvjp(_forward, _backward)


class _Words:
    """Consecutive words of a vocabulary, some of which an earlier tile may have had.

    Args:
      table, bias: of the whole vocabulary.
      start: the first word.
      count: how many.
      new: the first word that counts.
    """

    def __init__(self, table: Array, bias: Array, start: Any, count: int, new: Any):
        self._table, self._bias, self._start, self._count = table, bias, start, count
        self._ids = start + jnp.arange(count)
        self._counts = self._ids >= new

    def rows(self, dtype: Any) -> Array:
        return jax.lax.dynamic_slice_in_dim(self._table, self._start, self._count).astype(dtype)

    def logits(self, states: Array) -> Array:
        """[tokens, words]; minus infinity for words that an earlier tile had."""
        sums = _accumulator(states)
        logits = jnp.matmul(states, self.rows(states.dtype).T, preferred_element_type=sums)
        logits = logits + jax.lax.dynamic_slice_in_dim(self._bias, self._start, self._count).astype(sums)
        return jnp.where(self._counts, logits, -jnp.inf)

    def are(self, targets: Array) -> Array:
        """[tokens, words], whether a word is a token's target."""
        return (targets[:, None] == self._ids) & self._counts

    def add_to(self, whole: Array, part: Array) -> Array:
        """An array of the vocabulary's length with an array of these words added. What does not count must be 0."""
        old = jax.lax.dynamic_slice_in_dim(whole, self._start, self._count)
        return jax.lax.dynamic_update_slice_in_dim(whole, old + part, self._start, axis=0)


def _sweep(tile: int, table: Array, bias: Array, visit: Callable[[Any, _Words], Any], start: Any) -> Any:
    """visit(...visit(visit(start, first words), second words)..., last words); the last tile may overlap."""
    size = len(table)
    tiles = -(-size // tile)
    if tiles == 1:
        return visit(start, _Words(table, bias, 0, size, 0))

    def body(number: Array, carry: Any) -> Any:
        return visit(carry, _Words(table, bias, jnp.minimum(number * tile, size - tile), tile, number * tile))

    return jax.lax.fori_loop(0, tiles, body, start)


def _accumulator(states: Array) -> Any:
    return jnp.promote_types(states.dtype, jnp.float32)
