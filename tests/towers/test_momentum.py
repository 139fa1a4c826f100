"""Queues of the latest keys, first in, first out, with pushes that move only the batch; momentum copies."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.errors import UserError
from jaxclip.towers.layers import Linear, normal
from jaxclip.towers.momentum import Queue, follow


def test_a_queue_holds_the_last_keys():
    queue = Queue(12, 2, rngs=nnx.Rngs(params=0))
    np.testing.assert_allclose(np.linalg.norm(queue.queue[...], axis=1), 1, rtol=1e-6)
    start = {tuple(row) for row in np.asarray(queue.queue[...])}
    pushed = np.random.default_rng(0).standard_normal((7, 4, 2)).astype(np.float32)
    for number, keys in enumerate(pushed):
        queue.push(jnp.asarray(keys))
        expected = {tuple(row) for row in pushed[max(0, number - 2) : number + 1].reshape(-1, 2)}
        found = {tuple(row) for row in np.asarray(queue.queue[...])}
        assert expected <= found and found - expected <= start
        assert len(found) == 12


def test_a_queue_that_the_batch_does_not_divide_is_refused():
    with pytest.raises(UserError, match="a queue of 12 keys must be a multiple of the batch of 5"):
        Queue(12, 2, rngs=nnx.Rngs(params=0)).push(jnp.zeros((5, 2)))


SIZE, WIDTH, BATCH = 65_536, 256, 64


def test_a_push_moves_the_batch_and_never_the_queue():
    mesh = sharding.create(MeshConfig(fsdp=2), jax.devices()[:8])
    graph, state = nnx.split(nnx.eval_shape(lambda: Queue(SIZE, WIDTH, rngs=nnx.Rngs(params=0))))
    memory = nnx.to_pure_dict(state)
    shardings = sharding.state_shardings(mesh, memory)
    assert shardings["queue"].spec == sharding.BATCH

    def push(memory, keys):
        queue = nnx.merge(graph, nnx.State(memory))
        queue.push(keys)
        return nnx.to_pure_dict(nnx.state(queue))

    abstract = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), memory, shardings
    )
    # Keys from the towers are sharded like the rows of a batch.
    keys = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32, sharding=sharding.batch_sharding(mesh))
    program = jax.jit(push, out_shardings=shardings).lower(abstract, keys).compile().as_text()
    for line in program.splitlines():
        if re.search(r" (all-gather|all-to-all|collective-permute|all-reduce)(-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", line.split("(")[0])
            assert max(np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes) <= BATCH * WIDTH, line
    # A shard is what a device holds of the queue; the whole would be eight times as large.
    assert f"f32[{SIZE // 8},{WIDTH}]" in program and f"f32[{SIZE},{WIDTH}]" not in program


def test_a_push_on_eight_devices_is_that_on_one():
    def pushed(devices: int) -> np.ndarray:
        mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
        graph, state = nnx.split(Queue(32, 3, rngs=nnx.Rngs(params=0)))
        memory = nnx.to_pure_dict(state)
        memory = jax.device_put(memory, sharding.state_shardings(mesh, memory))

        @jax.jit
        def push(memory, keys):
            queue = nnx.merge(graph, nnx.State(memory))
            queue.push(keys)
            return nnx.to_pure_dict(nnx.state(queue))

        for number in range(5):
            keys = np.random.default_rng(number).standard_normal((8, 3)).astype(np.float32)
            memory = push(memory, jax.device_put(keys, sharding.batch_sharding(mesh)))
        return np.asarray(memory["queue"])

    np.testing.assert_array_equal(pushed(8), pushed(1))


@pytest.mark.parametrize(("step", "kept"), [(0, 0.0), (1, 0.9), (None, 0.9)])
def test_a_momentum_copy_follows(step, kept):
    """The first step copies: the copy starts as the model does, whatever weights that started from."""
    slow, fast = (Linear(3, 2, kernel=normal(1.0), bias=normal(1.0), rngs=nnx.Rngs(params=n)) for n in (0, 1))
    before = {name: np.asarray(getattr(slow, name)[...], np.float64) for name in ("kernel", "bias")}
    follow(slow, fast, 0.9, None if step is None else jnp.int32(step))
    for name, old in before.items():
        new = np.asarray(getattr(fast, name)[...], np.float64)
        np.testing.assert_allclose(getattr(slow, name)[...], kept * old + (1 - kept) * new, rtol=0, atol=1e-6)


def test_no_gradient_reaches_the_model_through_its_copy():
    fast = Linear(3, 2, kernel=normal(1.0), rngs=nnx.Rngs(params=1))
    graph, params = nnx.split(fast)

    def value(params):
        slow = Linear(3, 2, kernel=normal(1.0), rngs=nnx.Rngs(params=0))
        follow(slow, nnx.merge(graph, params), 0.5, None)
        return jnp.sum(slow(jnp.ones((1, 3))))

    assert not np.any(jax.grad(value)(params)["kernel"][...])
