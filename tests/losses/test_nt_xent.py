"""SimCLR's loss compared with its definition, on any number of devices and in any layout."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.losses import nt_xent

BATCH, WIDTH, SCALE = 32, 8, 10.0


@functools.cache
def views() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((BATCH, WIDTH))
    second = first + rng.standard_normal((BATCH, WIDTH))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (first, second))


def defined(first, second, scale):
    """Equation 1, with all 2 N embeddings in one list and the comparison with itself left out."""
    both = jnp.concatenate([first, second])
    logits = scale * jnp.matmul(both, both.T, precision="highest")
    logits = jnp.where(jnp.eye(len(both), dtype=bool), -jnp.inf, logits)
    partner = (jnp.arange(len(both)) + len(first)) % len(both)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(both)), partner])


@pytest.mark.parametrize("devices", [1, 8])
def test_loss_and_gradients_are_those_of_the_definition(devices):
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    rows = jax.device_put(views(), sharding.batch_sharding(mesh))
    loss = jax.value_and_grad(lambda *args: nt_xent(*args, mesh=mesh)[0], argnums=(0, 1, 2))
    value, gradients = jax.jit(loss)(*rows, jnp.float32(SCALE))
    expected, expected_gradients = jax.value_and_grad(defined, argnums=(0, 1, 2))(*views(), jnp.float32(SCALE))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_equal_embeddings_give_the_logarithm_of_the_number_of_others():
    same = jnp.ones((BATCH, 1))
    loss, accuracy = nt_xent(same, same, SCALE)
    assert float(loss) == pytest.approx(np.log(2 * BATCH - 1), rel=1e-6)
    assert float(accuracy) == pytest.approx(1 / (2 * BATCH - 1), rel=1e-6)
