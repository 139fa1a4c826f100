"""Hard negatives of image-text matching: with which probabilities they are drawn, and that no pair is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.losses.matching import digests, hard_negatives, pick
from jaxclip.towers.layers import unit

BATCH, WIDTH, GROUP, SCALE = 8, 4, 4, 3.0


def pairs() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, BATCH, WIDTH)).astype(np.float32)
    return unit(jnp.asarray(images)), unit(jnp.asarray(texts))


def test_negatives_are_drawn_as_the_softmax_of_the_group_without_the_pair_says():
    images, texts = pairs()
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: hard_negatives(images, texts, SCALE, jnp.arange(BATCH), GROUP, key))(keys)
    for found, ours, others in ((drawn.text, images, texts), (drawn.image, texts, images)):
        for row in range(BATCH):
            first = row // GROUP * GROUP
            shares = np.exp(SCALE * ours[row] @ others[first : first + GROUP].T)
            shares[row - first] = 0
            counted = np.bincount(np.asarray(found[:, row]), minlength=GROUP) / len(keys)
            np.testing.assert_allclose(counted, shares / shares.sum(), atol=0.015)


def test_what_is_the_same_is_no_negative():
    """Records 0 and 2 have one text; of the second group all have."""
    images, texts = pairs()
    same = digests(jnp.array([[1, 5], [2, 5], [1, 5], [3, 0], [4, 4], [4, 4], [4, 4], [4, 4]]))
    for seed in range(50):
        drawn = hard_negatives(images, texts, SCALE, same, GROUP, jax.random.key(seed))
        for row in (0, 2):
            assert drawn.text[row] in (1, 3) and drawn.image[row] in (1, 3)
    assert drawn.exist.tolist() == [True] * 4 + [False] * 4


def test_rows_are_picked_from_the_group_of_each_record():
    rows = np.random.default_rng(0).standard_normal((BATCH, 3, 2))
    index = np.array([3, 0, 0, 1, 2, 2, 1, 0])
    found = pick(jnp.asarray(rows), jnp.asarray(index), GROUP)
    np.testing.assert_array_equal(found, rows.astype(np.float32)[index + np.repeat([0, 4], 4)])


@pytest.mark.parametrize("group", [GROUP, BATCH])
def test_draws_do_not_depend_on_the_devices(group):
    def draw(images, texts):
        return hard_negatives(images, texts, SCALE, jnp.arange(BATCH), group, jax.random.key(1))

    expected = draw(*pairs())
    mesh = sharding.create(MeshConfig(), jax.devices()[:8])
    found = jax.jit(draw)(*jax.device_put(pairs(), sharding.batch_sharding(mesh)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
