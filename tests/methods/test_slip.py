"""SLIP: CLIP's loss and SimCLR's over the global batch."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from drawn_batch import drawn_batch

from jaxclip import methods, optimizer, sharding
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.inputs import shapes
from jaxclip.step import Step

BATCH = 16
TOWER = {"width": 32, "layers": 1, "heads": 2}
TOWERS = {
    "embed_dim": 16,
    "image": {"name": "vit", "image_size": 16, "patch_size": 8, "patch_drop": 0.0, **TOWER},
    "text": {"vocab_size": 50, "context_length": 6, **TOWER},
}


def method(**keys: Any) -> Any:
    return methods.from_config({"name": "slip", "ssl_hidden": 24, "ssl_dim": 8, **TOWERS, **keys})


@functools.cache
def step_on(devices: int, microbatches: int) -> Step:
    mesh = sharding.create(MeshConfig(fsdp=min(2, devices)), jax.devices()[:devices])
    # The eps is large because the division by a gradient that is zero but for rounding would magnify the rounding.
    adamw = optimizer.create(OptimizerConfig(learning_rate=2e-3, warmup_steps=0, eps=1e-3), 100)
    return Step(method(), adamw, mesh, precision="float32", microbatches=microbatches)


@functools.cache
def batch() -> dict[str, jax.Array]:
    rows = drawn_batch(method(), BATCH)
    # The second view has as much noise as it has of the first.
    rows["second_view"] = rows["first_view"] // 2 + rows["second_view"] // 2
    return rows


@functools.cache
def steps(devices: int, microbatches: int = 1, count: int = 3) -> list[dict[str, float]]:
    step = step_on(devices, microbatches)
    # Where a state is initialized makes no difference (tests/run/test_step.py), and one initialization compiles faster.
    state = jax.device_put(step_on(1, 1).init(3), jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))
    rows = jax.device_put(batch(), sharding.batch_sharding(step.mesh))
    found = []
    for _ in range(count):
        state, metrics = step.train(state, rows)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def test_losses_depend_on_neither_devices_nor_micro_batches():
    """Both at once: what depends on one of them depends on both."""
    for found, expected in zip(steps(8, 2), steps(1), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_loss_is_clips_and_simclrs_between_the_views():
    params, stats = jax.jit(functools.partial(methods.init_variables, method()))(jax.random.key(3))
    model = methods.bind(method())(methods.joined(params, stats))

    @jax.jit
    def found(params, stats):
        model = methods.bind(method())(methods.joined(params, stats))
        ctx = Context(model=model, key=jax.random.key(0))
        features = [model.features(batch()[name], Context(model=model)) for name in ("first_view", "second_view")]
        return *method().loss(model, batch(), ctx), features

    loss, metrics, features = found(params, stats)
    # SimCLR's NT-Xent (Chen et al. 2020, equation 1) with features and a head of NumPy.
    kernels = [
        np.asarray(getattr(model.ssl_head, f"{name}_kernel")[...], np.float64) for name in ("first", "second", "third")
    ]
    embeddings = []
    for view in features:
        x = np.asarray(view, np.float64)
        for kernel in kernels[:2]:
            y = x @ kernel
            x = np.maximum((y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5), 0)
        y = x @ kernels[2]
        embeddings.append(y / np.linalg.norm(y, axis=1, keepdims=True))
    z = np.concatenate(embeddings)
    logits = z @ z.T / 0.1
    np.fill_diagonal(logits, -np.inf)
    positives = logits[np.arange(2 * BATCH), (np.arange(2 * BATCH) + BATCH) % (2 * BATCH)]
    expected = np.mean(np.log(np.exp(logits).sum(1)) - positives)
    assert float(metrics["ssl_loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(float(metrics["clip_loss"] + metrics["ssl_loss"]), rel=1e-6)


def test_with_a_weight_of_zero_it_is_clip():
    slip, plain = method(ssl_weight=0.0), methods.from_config({"name": "clip", **TOWERS})
    params, stats = jax.jit(functools.partial(methods.init_variables, slip))(jax.random.key(3))
    arrays = batch()

    def loss(kind: Any, params: Any, stats: Any) -> Any:
        model = methods.bind(kind)(methods.joined(params, stats))
        rows = {name: arrays[name] for name in shapes(kind.inputs(), BATCH)}
        return kind.loss(model, rows, Context(model=model, key=jax.random.key(0)))[0]

    value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, slip)))(params, stats)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient.pop("ssl_head")))
    kept = {name: tree for name, tree in params.items() if name != "ssl_head"}
    expected_value, expected = jax.jit(jax.value_and_grad(functools.partial(loss, plain)))(kept, {})
    assert float(value) == pytest.approx(float(expected_value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)


def test_views_come_to_be_recognized():
    found = steps(1, 1, 40)
    assert found[0]["ssl_accuracy"] < 0.8 and found[-1]["ssl_accuracy"] > 0.95
    assert found[-1]["clip_loss"] < found[0]["clip_loss"] / 2
