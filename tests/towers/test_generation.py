"""Beam search and nucleus sampling against all texts of a vocabulary of six words."""

from __future__ import annotations

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip.context import Context
from jaxclip.towers.decoder import Decoder, DecoderConfig, TokenEmbedding
from jaxclip.towers.generation import beam_search, nucleus_sample

START, END, WORDS, LENGTH, BATCH = 4, 1, 6, 5, 4


@functools.cache
def model():
    """A random decoder that prefers some words clearly, the step over it, and contexts of four images."""
    config = DecoderConfig(vocab_size=WORDS, context_length=LENGTH, width=32, layers=2, heads=2)
    rngs = nnx.Rngs(params=1)
    embedding, decoder = TokenEmbedding(config, rngs=rngs), Decoder(config, rngs=rngs)
    rng = np.random.default_rng(3)
    output, context = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((32, WORDS), (BATCH, 3, 32)))

    def step(tokens, cache, place):
        x, cache, _ = decoder.step(embedding.at(tokens, place, Context()), cache, place)
        return x @ output / 3, cache

    def logits(tokens):
        """[batch, length, words] of whole texts [batch, length], without a cache."""
        x = embedding(tokens, jnp.ones_like(tokens, dtype=bool))
        return decoder(x, causal=True, context=jnp.repeat(context, len(tokens) // BATCH, axis=0)) @ output / 3

    return step, decoder, context, logits


@functools.cache
def all_texts(repeats: bool) -> list[dict[tuple[int, ...], float]]:
    """Of each image, the log-probability of every text, up to and with its end if it has one."""
    texts = [(START, *rest) for rest in itertools.product([w for w in range(WORDS) if w != START], repeat=LENGTH - 1)]
    texts = sorted({text[: text.index(END, 1) + 1] if END in text[1:] else text for text in texts})
    padded = jnp.array([[*text, *(END,) * (LENGTH - len(text))] for text in texts])
    words = jax.nn.log_softmax(jax.jit(model()[3])(jnp.tile(padded, (BATCH, 1))), axis=-1)
    words = np.asarray(words).reshape(BATCH, len(texts), LENGTH, WORDS)
    found = []
    for image in range(BATCH):
        scores = {}
        for number, text in enumerate(texts):
            if repeats or all(a != b for a, b in itertools.pairwise(text)):
                scores[text] = float(sum(words[image, number, place, word] for place, word in enumerate(text[1:])))
        found.append(scores)
    return found


def cut(row: np.ndarray) -> tuple[int, ...]:
    text = tuple(row.tolist())
    return text[: text.index(END, 1) + 1] if END in text[1:] else text


def searched(**keys):
    step, decoder, context, _ = model()
    limits = {"start": START, "end": END, "length": LENGTH}
    search = jax.jit(lambda: beam_search(step, decoder.begin(context, keys["beams"], LENGTH), BATCH, **limits, **keys))
    tokens, scores = map(np.asarray, search())
    return [cut(row) for row in tokens], scores


@pytest.mark.parametrize("repeats", [False, True])
def test_a_beam_as_wide_as_all_texts_finds_the_most_probable_one(repeats):
    texts, scores = searched(beams=5**4, per_beam=WORDS, repeats=repeats)
    for text, score, known in zip(texts, scores, all_texts(repeats), strict=True):
        assert text == max(known, key=known.get)
        assert score == pytest.approx(known[text], rel=1e-5)


@pytest.mark.parametrize(("beams", "per_beam"), [(5, 2), (3, 6), (2, 1), (1, 1)])
def test_any_beam_finds_what_a_plain_search_finds(beams, per_beam):
    texts, scores = searched(beams=beams, per_beam=per_beam)
    for text, score, known in zip(texts, scores, all_texts(False), strict=True):
        assert text == plain_search(known, beams, per_beam)
        assert score == pytest.approx(known[text], rel=1e-5)


def plain_search(known: dict[tuple[int, ...], float], beams: int, per_beam: int) -> tuple[int, ...]:
    """The same search in Python, of which the probability of a beginning is the sum over all texts that begin so."""
    totals: dict[tuple[int, ...], float] = collections.defaultdict(float)
    # Where repeats are forbidden, what is left does not sum to 1; the model's own conditional probabilities are needed.
    conditional = conditionals()
    kept = {(START,): 0.0}
    image = next(number for number, texts in enumerate(all_texts(False)) if texts is known)
    for place in range(LENGTH - 1):
        totals.clear()
        for text, score in kept.items():
            if len(text) > 1 and text[-1] == END:
                totals[text] = score
                continue
            words = {w: conditional(image, text, w) for w in range(WORDS) if w != START and (w != text[-1] or w == END)}
            for word in sorted(words, key=words.get, reverse=True)[: per_beam if place else beams]:
                totals[(*text, word)] = score + words[word]
        kept = dict(sorted(totals.items(), key=lambda item: -item[1])[:beams])
    return next(iter(kept))


@functools.cache
def conditionals():
    step = jax.jit(model()[3])

    @functools.cache
    def of_text(text: tuple[int, ...]) -> np.ndarray:
        padded = jnp.array([[*text, *(END,) * (LENGTH - len(text))]] * BATCH)
        return np.asarray(jax.nn.log_softmax(step(padded), axis=-1)[:, len(text) - 1])

    return lambda image, text, word: float(of_text(text)[image, word])


def test_only_words_of_the_vocabulary_are_generated():
    assert max(word for text in sampled(1.0, 200) for word in text[1:]) == WORDS - 1
    assert max(word for text in sampled(1.0, 200, words=3) for word in text[1:]) == 2
    known = all_texts(True)[0]
    texts, scores = searched(beams=5**4, per_beam=WORDS, repeats=True, words=3)
    assert texts[0] == max((text for text in known if max(text[1:]) < 3), key=known.get)
    assert scores[0] == pytest.approx(known[texts[0]], rel=1e-5)


def sampled(share: float, count: int, **keys):
    """`count` texts of the first image."""
    step, decoder, context, _ = model()
    row_keys = jax.random.split(jax.random.key(0), count)
    limits = {"start": START, "end": END, "length": LENGTH}

    @jax.jit
    def sample():
        cache = decoder.begin(jnp.repeat(context[:1], count, axis=0), 1, LENGTH)
        return nucleus_sample(step, cache, row_keys, share=share, **limits, **keys)

    return [cut(row) for row in np.asarray(sample())]


def test_texts_are_drawn_as_often_as_they_are_probable():
    """Of 4,000 draws from all words, the shares of the ten most probable texts."""
    known = all_texts(True)[0]
    counts = collections.Counter(sampled(1.0, 4000, repeats=True))
    # The start is never generated: what the other words would have had of it is divided among them.
    conditional = conditionals()

    def probability(text):
        steps = []
        for place in range(1, len(text)):
            words = [math.exp(conditional(0, text[:place], w)) for w in range(WORDS)]
            steps.append(words[text[place]] / (sum(words) - words[START]))
        return math.prod(steps)

    for text in sorted(known, key=known.get, reverse=True)[:10]:
        expected = probability(text)
        assert abs(counts[text] / 4000 - expected) < 5 * math.sqrt(expected / 4000)


def test_a_small_nucleus_takes_the_most_probable_word_each_time():
    greedy = plain_search(all_texts(False)[0], beams=1, per_beam=1)
    assert set(sampled(1e-6, 5)) == {greedy}


def test_no_word_outside_the_nucleus_is_drawn():
    conditional = conditionals()
    for text in set(sampled(0.6, 500)):
        for place in range(1, len(text)):
            allowed = [w for w in range(WORDS) if w != START and (w != text[place - 1] or w == END)]
            words = {w: math.exp(conditional(0, text[:place], w)) for w in allowed}
            more = sum(p for p in words.values() if p > words[text[place]])
            assert more / sum(words.values()) < 0.6 + 1e-5
