"""Masked tokens: which are chosen, what they become, and that all of them are labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.losses.masked import mask_tokens

TEXTS, LENGTH, WORDS, MASK = 4000, 22, 50, 3


def masked(lengths: np.ndarray, **keys: float):
    """The tokens of texts, each of `lengths` words between start and end, and what is made of them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, WORDS, (len(lengths), LENGTH))
    places = np.arange(LENGTH)
    tokens = np.where(places == lengths[:, None] + 1, 2, np.where(places > lengths[:, None] + 1, 0, tokens))
    tokens[:, 0] = 1
    row_keys = jax.random.split(jax.random.key(0), len(lengths))
    end = jnp.asarray(lengths + 1)
    return tokens, mask_tokens(jnp.asarray(tokens, jnp.int32), end, row_keys, mask_id=MASK, vocab_size=WORDS, **keys)


def test_a_share_of_the_words_is_chosen_and_rounded_up():
    lengths = np.arange(LENGTH - 1)
    tokens, found = masked(lengths)
    expected = -(-15 * lengths // 100)
    np.testing.assert_array_equal(found.weights.sum(1), expected)
    chosen = np.asarray(found.weights) > 0
    slots = np.asarray(found.slots)
    # Between start and end, each once, with the token that stood there as its label.
    assert np.all((slots > 0) & (slots <= lengths[:, None]) | ~chosen)
    assert all(len(set(row[used])) == used.sum() for row, used in zip(slots, chosen, strict=True))
    np.testing.assert_array_equal(np.take_along_axis(tokens, slots, 1)[chosen], np.asarray(found.labels)[chosen])


def test_only_chosen_tokens_change():
    tokens, found = masked(np.full(100, 20))
    changed = np.asarray(found.tokens) != tokens
    chosen = np.zeros_like(changed)
    for row, (slots, weights) in enumerate(zip(found.slots, found.weights, strict=True)):
        chosen[row, np.asarray(slots)[np.asarray(weights) > 0]] = True
    assert changed.any() and not np.any(changed & ~chosen)


def test_the_shares_of_what_they_become():
    """85 % the mask, 10 % a random word and 5 % themselves, of 12,000 chosen tokens."""
    tokens, found = masked(np.full(TEXTS, 20), masked=0.85, replaced=0.10)
    new = np.take_along_axis(np.asarray(found.tokens), np.asarray(found.slots), 1)
    labels = np.asarray(found.labels)
    assert labels.size == 3 * TEXTS and np.all(found.weights == 1)
    random_is_the_same_or_the_mask = 0.10 / WORDS
    # Four standard deviations of the shares are 0.013 and 0.009.
    assert abs(np.mean(new == MASK) - 0.85 - random_is_the_same_or_the_mask) < 0.013
    assert abs(np.mean(new == labels) - 0.05 - random_is_the_same_or_the_mask) < 0.009


def test_every_word_is_chosen_as_often_as_any_other():
    _, found = masked(np.full(TEXTS, 20))
    counts = np.bincount(np.asarray(found.slots).ravel(), minlength=LENGTH)[1:21]
    # 600 each; five standard deviations are 120.
    assert np.all(np.abs(counts - 3 * TEXTS / 20) < 120)


def test_a_texts_masks_depend_on_its_key_alone():
    tokens, found = masked(np.full(8, 12))
    keys = jax.random.split(jax.random.key(0), 8)[5:]
    alone = mask_tokens(jnp.asarray(tokens[5:], jnp.int32), jnp.full(3, 13), keys, mask_id=MASK, vocab_size=WORDS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[5:], b), found, alone)
