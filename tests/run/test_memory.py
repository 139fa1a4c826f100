"""All features of a method together: two stages, dropout, grouped statistics, momentum copy, queue and average."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import optimizer, sharding
from jaxclip.checkpoint import Checkpoints, find, load_variables
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.inputs import shapes
from jaxclip.losses.contrastive import softmax_contrastive
from jaxclip.losses.queued import queued_contrastive
from jaxclip.methods import clip
from jaxclip.step import Step, TrainState
from jaxclip.towers.batch_norm import BatchNorm
from jaxclip.towers.momentum import Queue, follow
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig

BATCH, QUEUE = 32, 64


class Model(clip.CLIP):
    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method, rngs=rngs)
        self.norm = BatchNorm(method.embed_dim, groups=4)


class Memory(nnx.Module):
    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        self.slow = nnx.clone(model)
        self.texts = Queue(QUEUE, 16, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Method(clip.Method):
    def init(self, rngs):
        return Model(self, rngs=rngs)

    def memory(self, model, rngs):
        return Memory(model, rngs=rngs)

    def loss(self, model, batch, ctx):
        follow(ctx.memory.slow, model, 0.9, ctx.step)
        images, texts = ctx.each(clip.embed, batch)
        # A second stage with other randomness, and statistics of the whole batch.
        again, _ = ctx.each(clip.embed, batch, salt=1)
        images = model.norm((images + again)[:, None, None], ctx.train)[:, 0, 0]
        images = images / jnp.linalg.norm(images, axis=1, keepdims=True)
        _, keys = ctx.each(lambda _, rows, ctx: clip.embed(ctx.memory.slow, rows, ctx), batch, salt=2)
        scale, _ = model.scale_and_bias()
        loss, accuracy = softmax_contrastive(images, texts, scale, mesh=ctx.mesh)
        queued, _ = queued_contrastive(images, keys, ctx.memory.texts.queue[...], 10.0, mesh=ctx.mesh)
        ctx.memory.texts.push(keys)
        return loss + queued, {"batch_accuracy": accuracy, "queued": queued}


@functools.cache
def step_on(devices: int, microbatches: int) -> Step:
    sizes: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "drop": 0.2}
    method = Method(ViTConfig(16, 8, **sizes), TextConfig(50, 6, **sizes), 16)
    mesh = sharding.create(MeshConfig(fsdp=min(2, devices)), jax.devices()[:devices])
    # The eps is large because the division by a gradient that is zero but for rounding would magnify the rounding.
    adamw = optimizer.create(OptimizerConfig(learning_rate=1e-2, warmup_steps=0, eps=1e-3), 100)
    return Step(method, adamw, mesh, precision="float32", microbatches=microbatches, average_decay=0.5)


def batch(step: Step, number: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(number)
    rows = {
        name: rng.integers(0, 256 if name == "image" else 6, array.shape).astype(array.dtype)
        for name, array in shapes(step.method.inputs(), BATCH).items()
    }
    return jax.device_put(rows, sharding.batch_sharding(step.mesh))


def run(step: Step, state: TrainState, first: int, last: int) -> tuple[TrainState, list[dict[str, float]]]:
    metrics = []
    for number in range(first, last):
        state, found = step.train(state, batch(step, number))
        metrics.append({name: float(value) for name, value in found.items()})
    return state, metrics


def fresh(step: Step) -> TrainState:
    """A state before the first step on the step's mesh; only that of one device is initialized there."""
    state = step_on(1, 1).init(3)
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))


@functools.cache
def four_steps(devices: int, microbatches: int) -> tuple[TrainState, list[dict[str, float]]]:
    step = step_on(devices, microbatches)
    return run(step, fresh(step), 0, 4)


def test_losses_depend_on_neither_devices_nor_micro_batches():
    """Both at once: what depends on one of them depends on both."""
    (state, found), (expected_state, expected) = four_steps(8, 2), four_steps(1, 1)
    for metrics, wanted in zip(found, expected, strict=True):
        for name in ("loss", "queued", "grad_norm"):
            assert metrics[name] == pytest.approx(wanted[name], rel=2e-5), name
    for part in ("params", "average", "memory", "stats"):
        trees = jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(expected_state, part))
        for leaf, wanted in zip(*trees, strict=True):
            np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_bit_for_bit_with_its_memory(tmp_path):
    step = step_on(8, 2)
    state, _ = run(step, fresh(step), 0, 2)
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(2, state, {"config": "none"})
    checkpoints.wait()
    _, found = run(step, checkpoints.restore(step.abstract_state).state, 2, 4)
    checkpoints.close()
    assert found == four_steps(8, 2)[1][2:]


def test_momentum_copy_queue_and_average_move():
    step = step_on(1, 1)
    start = step.init(3)
    before = jax.tree.map(np.asarray, (start.memory, start.average))
    state, _ = run(step, start, 0, 2)
    assert int(state.memory["texts"]["turn"]) == 0  # two batches of 32 fill a queue of 64
    after = jax.tree.map(np.asarray, (state.memory, state.average))
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert sum(moved) > len(moved) / 2
    slow = state.memory["slow"]["image_projection"]["kernel"]
    assert not np.array_equal(slow, state.params["image_projection"]["kernel"])


def test_validation_sees_the_memory_and_leaves_it():
    step, (state, _) = step_on(1, 1), four_steps(1, 1)
    kept, rows = jax.tree.map(np.asarray, state.memory), batch(step, 9)
    found = step.validate(state.variables, state.memory, rows)
    jax.tree.map(np.testing.assert_array_equal, kept, state.memory)
    assert float(step.validate(state.variables, state.memory, rows)["queued"]) == float(found["queued"])
    assert float(step.validate(state.variables, step.init(4).memory, rows)["queued"]) != float(found["queued"])


def test_weights_of_a_checkpoint_are_read_without_its_memory(tmp_path):
    step, (state, _) = step_on(1, 1), four_steps(1, 1)
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(4, state, {"config": "none"})
    checkpoints.close()
    abstract = step.abstract_state
    for averaged, expected in ((False, state.params), (True, state.average)):
        params, stats = load_variables(find(tmp_path), abstract.params, abstract.stats, averaged)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        jax.tree.map(np.testing.assert_array_equal, stats, state.stats)


def test_queues_lie_on_all_devices():
    queue = step_on(8, 2).abstract_state.memory["texts"]["queue"]
    assert queue.sharding.shard_shape(queue.shape) == (QUEUE // 8, 16)


def test_an_average_follows_by_its_decay():
    step = step_on(1, 1)
    state = step.init(3)
    state, _ = run(step, state, 0, 1)
    first = jax.tree.map(np.asarray, state.params)
    # The first update copies, so that a run may start from any weights.
    assert all(map(np.array_equal, jax.tree.leaves(state.average), jax.tree.leaves(first)))
    state, _ = run(step, state, 1, 2)
    for average, old, new in zip(*map(jax.tree.leaves, (state.average, first, state.params)), strict=True):
        np.testing.assert_allclose(average, 0.5 * old + 0.5 * np.asarray(new), rtol=1e-5, atol=1e-7)
