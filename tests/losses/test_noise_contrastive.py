"""PIRL's noise-contrastive loss, compared with its equations in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.losses.noise_contrastive import noise_contrastive

BATCH, COUNT = 5, 40


def logits(scale: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return scale * rng.standard_normal(BATCH), scale * rng.standard_normal((BATCH, COUNT))


def by_hand(positive: float, negatives: np.ndarray) -> float:
    """Equations 3 and 4."""
    others = np.exp(negatives).sum()
    h = lambda s: np.exp(s) / (np.exp(s) + others)  # noqa: E731
    return -np.log(h(positive)) - sum(np.log(1 - h(s)) for s in negatives)


def as_float32(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def test_the_loss_is_that_of_the_equations():
    positive, negatives = logits()
    expected = [by_hand(s, row) for s, row in zip(positive, negatives, strict=True)]
    np.testing.assert_allclose(noise_contrastive(*as_float32(positive, negatives)), expected, rtol=1e-5)


def test_a_rows_own_record_is_not_among_its_negatives():
    positive, negatives = logits()
    excluded = np.random.default_rng(1).random((BATCH, COUNT)) < 0.3
    rows = zip(positive, negatives, excluded, strict=True)
    expected = [by_hand(s, row[~without]) for s, row, without in rows]
    found, gradient = jax.value_and_grad(lambda p, n: jnp.sum(noise_contrastive(p, n, jnp.asarray(excluded))), 1)(
        *as_float32(positive, negatives)
    )
    assert float(found) == pytest.approx(sum(expected), rel=1e-5)
    assert not np.any(np.asarray(gradient)[excluded]) and np.all(np.asarray(gradient)[~excluded])


def test_equal_logits_give_ln_of_all_and_nearly_one_for_the_negatives():
    found = float(noise_contrastive(jnp.zeros(1), jnp.zeros((1, 32_000)))[0])
    assert found == pytest.approx(np.log(32_001) + 1, rel=1e-5)


def test_large_logits_stay_finite():
    value, gradients = jax.value_and_grad(lambda *given: jnp.sum(noise_contrastive(*given)), (0, 1))(
        *as_float32(*logits(1000.0))
    )
    assert np.isfinite(value) and all(np.all(np.isfinite(gradient)) for gradient in gradients)
