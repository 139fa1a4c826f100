"""The decoder of captions: no look ahead, one step at a time as in whole texts, attention to the image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.decoder import Decoder, DecoderConfig, TokenEmbedding

BATCH, LENGTH, PLACES = 3, 7, 5
KINDS = {"post": {}, "pre": {"norm": "pre", "eps": 1e-6, "activation": "quick_gelu"}}


@functools.cache
def made(norm: str) -> tuple[Decoder, jax.Array, jax.Array]:
    """A decoder whose every parameter is drawn, states of tokens and a context."""
    config = DecoderConfig(vocab_size=40, context_length=LENGTH, width=32, layers=2, heads=2, **KINDS[norm])
    decoder = Decoder(config, rngs=nnx.Rngs(params=0))
    graph, params = nnx.split(decoder)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), params)
    x, context = (jnp.asarray(rng.standard_normal((BATCH, n, 32)), jnp.float32) for n in (LENGTH, PLACES))
    return nnx.merge(graph, params), x, context


def whole(norm: str) -> jax.Array:
    decoder, x, context = made(norm)
    return decoder(x, causal=True, context=context)


@pytest.mark.parametrize("norm", KINDS)
def test_later_tokens_change_nothing_before_them(norm):
    decoder, x, context = made(norm)
    changed = decoder(x.at[:, 4:].add(1.0), causal=True, context=context)
    np.testing.assert_array_equal(changed[:, :4], whole(norm)[:, :4])
    assert not np.allclose(changed[:, 4:], whole(norm)[:, 4:])


@pytest.mark.parametrize("norm", KINDS)
def test_one_step_after_the_other_gives_what_the_whole_text_gives(norm):
    decoder, x, context = made(norm)
    beams = jnp.stack([x, x[::-1]], axis=1)  # Two texts for each context.
    cache, found, weights = decoder.begin(context, 2, LENGTH), [], []
    step = jax.jit(decoder.step)
    for place in range(LENGTH):
        states, cache, attended = step(beams[:, :, place], cache, jnp.asarray(place))
        found.append(states)
        weights.append(attended)
    states = jnp.stack(found, axis=2)
    np.testing.assert_allclose(states[:, 0], whole(norm), rtol=1e-4, atol=1e-5)
    other = decoder(x[::-1], causal=True, context=context)
    np.testing.assert_allclose(states[:, 1], other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(jnp.stack(weights), axis=-1), 1, rtol=1e-5)


def test_the_weights_follow_the_places_they_are_of():
    decoder, x, context = made("post")
    states, _, weights = decoder.step(x[:, None, 0], decoder.begin(context, 1, LENGTH), jnp.asarray(0))
    order = jnp.array([3, 0, 4, 2, 1])
    moved, _, of_moved = decoder.step(x[:, None, 0], decoder.begin(context[:, order], 1, LENGTH), jnp.asarray(0))
    np.testing.assert_allclose(of_moved, weights[..., order], rtol=1e-5)
    np.testing.assert_allclose(moved, states, rtol=1e-4, atol=1e-5)
    assert float(jnp.max(weights)) > 1.5 / PLACES


def test_behind_the_end_an_embedding_is_zero_and_dropout_is_of_training():
    config = DecoderConfig(vocab_size=9, context_length=5, width=64, heads=1, drop=0.5)
    embedding = TokenEmbedding(config, rngs=nnx.Rngs(params=0))
    tokens, seen = jnp.array([[1, 7, 2, 0, 0]]), jnp.array([[True, True, True, False, False]])
    x = embedding(tokens, seen)
    assert not np.any(x[:, 3:]) and np.all(np.any(x[:, :3] != 0, axis=-1))
    for place in range(3):
        np.testing.assert_allclose(
            embedding.at(tokens[:, place, None], jnp.asarray(place), Context())[:, 0], x[:, place]
        )
    dropped = embedding(tokens, seen, Context(keys=jax.random.split(jax.random.key(0), 1)))
    assert 0.3 < float(jnp.mean(dropped[:, :3] == 0)) < 0.7


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"width": 30, "heads": 4}, "multiple of heads"),
        ({"layers": 0}, "layers=0"),
        ({"context_length": 1}, "at least 2"),
    ],
)
def test_sizes_that_make_no_decoder_are_named(keys, said):
    with pytest.raises(UserError, match=said):
        DecoderConfig(**keys)
