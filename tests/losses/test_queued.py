"""The loss over a batch's keys and a queue's, compared with one softmax over all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.losses.queued import queued_contrastive, softmax

BATCH, SIZE, WIDTH, SCALE = 8, 32, 5, 7.0


def inputs() -> list[jax.Array]:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((count, WIDTH)) for count in (BATCH, BATCH, SIZE)]
    return [jnp.asarray(row / np.linalg.norm(row, axis=1, keepdims=True), jnp.float32) for row in rows]


def soft_targets() -> tuple[jax.Array, jax.Array]:
    values = np.random.default_rng(1).random((BATCH, BATCH + SIZE))
    values /= values.sum(axis=1, keepdims=True)
    return tuple(jnp.split(jnp.asarray(values, jnp.float32), [BATCH], axis=1))


def reference(soft: bool) -> tuple[float, np.ndarray]:
    """The loss in float64 with the columns in one matrix, and its gradient by the queries."""
    queries, keys, queue = (np.asarray(array, np.float64) for array in inputs())
    columns = np.concatenate([keys, queue])
    logits = SCALE * queries @ columns.T
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.concatenate(soft_targets(), axis=1) if soft else np.eye(BATCH, BATCH + SIZE)
    by_logits = (np.exp(logs) * targets.sum(axis=1, keepdims=True) - targets) / BATCH
    return -(targets * logs).sum(axis=1).mean(), SCALE * by_logits @ columns


@pytest.mark.parametrize("soft", [False, True], ids=["own key", "soft targets"])
@pytest.mark.parametrize("devices", [None, 8])
def test_the_loss_and_its_gradient_equal_the_reference(devices, soft):
    given, targets = inputs(), soft_targets() if soft else None
    mesh = None
    if devices:
        mesh = sharding.create(MeshConfig(fsdp=2), jax.devices()[:devices])
        given = jax.device_put(given, sharding.batch_sharding(mesh))

    def loss(queries, keys, queue):
        return queued_contrastive(queries, keys, queue, SCALE, targets, mesh=mesh)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(*given)
    expected, by_queries = reference(soft)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, by_queries, rtol=0, atol=1e-6)


def test_the_columns_of_the_queue_stay_on_their_devices():
    mesh = sharding.create(MeshConfig(fsdp=2), jax.devices()[:8])
    size, width = 4096, 64
    rows = sharding.batch_sharding(mesh)
    batch = jax.ShapeDtypeStruct((BATCH, width), jnp.float32, sharding=rows)
    queue = jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=rows)
    loss = jax.jit(jax.grad(lambda *given: queued_contrastive(*given, SCALE, mesh=mesh)[0]))
    program = loss.lower(batch, batch, queue).compile().as_text()
    assert f"[{size // 8},{width}]" in program
    assert f"[{size},{width}]" not in program and f"[{BATCH},{size}]" not in program


def test_large_logits_stay_finite():
    queries, keys, queue = inputs()
    value, gradient = jax.value_and_grad(lambda q: queued_contrastive(q, keys, queue, 1e4)[0])(queries)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_soft_targets_sum_to_one_over_all_parts():
    _, logits = queued_contrastive(*inputs(), SCALE)
    shares = softmax(logits)
    np.testing.assert_allclose(sum(part.sum(axis=1) for part in shares), 1, rtol=1e-6)
