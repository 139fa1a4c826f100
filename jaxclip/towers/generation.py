"""Generation of texts on the device: beam search and nucleus sampling over a decoder's steps with a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# (tokens [batch, beams], cache, place) -> logits of the next tokens [batch, beams, vocabulary], and the new cache. The
# cache is a pytree; the axes of its arrays begin with [layers, batch, beams], or 1 beam for what all beams share.
Step = Callable[[Array, Any, Array], tuple[Array, Any]]


def beam_search(
    step: Step,
    cache: Any,
    batch: int,
    *,
    start: int,
    end: int,
    length: int,
    beams: int = 5,
    per_beam: int = 2,
    repeats: bool = False,
    words: int | None = None,
) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
    """The most probable texts that a beam search finds.

    The sum of the log-probabilities of the tokens counts, without any normalization by length. Of each of the `beams`
    best beginnings the `per_beam` best continuations are kept, of these again the `beams` best; a text that has its end
    stays as it is. The search begins with the `beams` best first tokens. VirTex's are 5 and 2 (kdexd/virtex,
    utils/beam_search.py).

    Args:
      step: of the decoder.
      cache: before the first token, with as many beams.
      batch: texts to generate.
      start, end: ids of the tokens that texts begin and end with; the start is generated nowhere else.
      length: the maximum number of tokens, start and end included.
      beams, per_beam: see above.
      repeats: whether a token may follow itself.
      words: only ids below it are generated; None for all. A vocabulary may have fewer words than the model has rows.

    Returns:
      int32 tokens, filled up with `end`, and their log-probabilities, float32.
    """
    tokens = jnp.full((batch, beams, length), end, jnp.int32).at[:, :, 0].set(start)
    # All beams begin alike: one is enough.
    scores = jnp.full((batch, beams), -jnp.inf).at[:, 0].set(0.0)

    def going_on(state: tuple) -> Array:
        place, tokens, _, _ = state
        # A score never rises: a best text that is at its end stays the best.
        last = jax.lax.dynamic_index_in_dim(tokens[:, 0], place, axis=1, keepdims=False)
        return (place < length - 1) & jnp.any((last != end) | (place == 0))

    def advance(state: tuple, continuations: int = per_beam) -> tuple:
        place, tokens, scores, cache = state
        last = jax.lax.dynamic_index_in_dim(tokens, place, axis=2, keepdims=False)
        logits, cache = step(last, cache, place)
        following = _allowed(logits, last, start, end, repeats, words)
        ended = (last == end) & (place > 0)
        only_end = jnp.where(jnp.arange(following.shape[-1]) == end, 0.0, -jnp.inf)
        following = jnp.where(ended[..., None], only_end, following)
        found, ids = jax.lax.top_k(following, min(continuations, following.shape[-1]))
        found = (scores[..., None] + found).reshape(batch, -1)
        # The best of the first beams may be fewer than there are beams.
        width = min(beams, found.shape[1])
        scores, chosen = jax.lax.top_k(found, width)
        scores = jnp.pad(scores, ((0, 0), (0, beams - width)), constant_values=-jnp.inf)
        chosen = jnp.pad(chosen, ((0, 0), (0, beams - width)))
        parents = chosen // ids.shape[-1]
        added = jnp.take_along_axis(ids.reshape(batch, -1), chosen, axis=1)
        tokens = jnp.take_along_axis(tokens, parents[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, added[..., None], place + 1, axis=2)
        return place + 1, tokens, scores, jax.tree.map(lambda leaf: _reordered(leaf, parents), cache)

    first = advance((jnp.zeros((), jnp.int32), tokens, scores, cache), beams)
    _, tokens, scores, _ = jax.lax.while_loop(going_on, advance, first)
    return tokens[:, 0], scores[:, 0]


def nucleus_sample(
    step: Step,
    cache: Any,
    keys: Key[Array, "batch"],
    *,
    start: int,
    end: int,
    length: int,
    share: float,
    repeats: bool = False,
    words: int | None = None,
) -> Int[Array, "batch length"]:
    """Random texts, each token drawn among the most probable ones (Holtzman et al. 2020, section 3.1).

    Args:
      step: of the decoder.
      cache: before the first token, with one beam.
      keys: one per text.
      start, end, length, repeats, words: as of `beam_search`.
      share: the nucleus, the fewest most probable tokens whose probabilities have at least this sum (the paper's p).

    Returns:
      int32 tokens, filled up with `end`.
    """
    tokens = jnp.full((len(keys), length), end, jnp.int32).at[:, 0].set(start)

    def going_on(state: tuple) -> Array:
        place, tokens, _ = state
        last = jax.lax.dynamic_index_in_dim(tokens, place, axis=1, keepdims=False)
        return (place < length - 1) & jnp.any((last != end) | (place == 0))

    def advance(state: tuple) -> tuple:
        place, tokens, cache = state
        last = jax.lax.dynamic_index_in_dim(tokens, place, axis=1, keepdims=False)
        logits, cache = step(last[:, None], cache, place)
        inside = _nucleus(_allowed(logits, last[:, None], start, end, repeats, words)[:, 0], share)
        drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, place), row))(keys, inside)
        following = jnp.where((last == end) & (place > 0), end, drawn).astype(jnp.int32)
        return place + 1, tokens.at[:, place + 1].set(following), cache

    return jax.lax.while_loop(going_on, advance, (jnp.zeros((), jnp.int32), tokens, cache))[1]


def _allowed(logits: Array, last: Array, start: int, end: int, repeats: bool, words: int | None) -> Array:
    """Log-probabilities of the next tokens, [batch, beams, vocabulary], without those that are not allowed."""
    found = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    ids = jnp.arange(found.shape[-1])
    # If texts start and end with the same token, it must remain possible to end.
    refused = ids == (start if start != end else -1)
    if words is not None:
        refused = refused | (ids >= words)
    if not repeats:
        refused = refused | ((ids == last[..., None]) & (ids != end))
    return jnp.where(refused, -jnp.inf, found)


def _nucleus(words: Float[Array, "batch vocabulary"], share: float) -> Float[Array, "batch vocabulary"]:
    """Log-probabilities without the tokens outside the nucleus."""
    order = jnp.argsort(-words, axis=-1)
    ranked = jax.nn.softmax(jnp.take_along_axis(words, order, axis=-1), axis=-1)
    # The sum before a token: the one that reaches the share is in.
    inside = jnp.cumsum(ranked, axis=-1) - ranked < share
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(inside, rank, axis=-1), words, -jnp.inf)


def _reordered(leaf: Array, parents: Int[Array, "batch beams"]) -> Array:
    """A part of the cache, [layers, batch, beams, ...], as the new beams have it."""
    if leaf.shape[2] == 1:
        return leaf
    index = parents.reshape(1, *parents.shape, *(1,) * (leaf.ndim - 3))
    return jnp.take_along_axis(leaf, index, axis=2)
