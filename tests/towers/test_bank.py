"""Banks of a vector per record: reading, drawing and moving them, and what of a sharded one is exchanged."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.towers.bank import Bank


def made_up(records: int = 6, width: int = 3) -> Bank:
    return Bank(records, width, rngs=nnx.Rngs(params=0))


def rows(bank: Bank) -> np.ndarray:
    return np.asarray(bank.bank[...], np.float64)


def test_a_bank_begins_with_different_unit_vectors():
    found = rows(made_up())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert len(np.unique(found.round(6), axis=0)) == len(found)


def test_a_record_moves_half_the_way_and_back_to_unit_length_and_the_others_stay():
    bank = made_up()
    before = rows(bank)
    vectors = np.random.default_rng(0).standard_normal((2, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bank.update(jnp.array([4, 1]), jnp.asarray(vectors, jnp.float32), momentum=0.25)
    moved = 0.25 * before[[4, 1]] + 0.75 * vectors
    expected = before.copy()
    expected[[4, 1]] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(rows(bank), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(bank.read(jnp.array([1, 4, 1])), bank.bank[...][jnp.array([1, 4, 1])])


def test_of_a_record_that_a_batch_has_twice_the_first_row_counts():
    one, other = made_up(), made_up()
    vectors = jnp.eye(3)
    one.update(jnp.array([2, 5, 2]), vectors, momentum=0.5)
    other.update(jnp.array([2, 5]), vectors[:2], momentum=0.5)
    np.testing.assert_array_equal(one.bank[...], other.bank[...])


def test_draws_are_of_all_records_and_of_nothing_else():
    drawn = np.asarray(made_up().draw(jax.random.key(0), 6000))
    assert np.array_equal(np.unique(drawn), np.arange(6))
    # A count has a standard deviation of 29.
    assert np.ptp(np.bincount(drawn)) < 250
    assert np.array_equal(drawn, made_up().draw(jax.random.key(0), 6000))
    assert not np.array_equal(drawn, made_up().draw(jax.random.key(1), 6000))


def test_no_gradient_goes_through_a_bank():
    graph, state = nnx.split(made_up())

    def value(state, vectors):
        bank = nnx.merge(graph, state)
        bank.update(jnp.array([0, 1]), vectors, momentum=0.5)
        return jnp.sum(bank.read(jnp.arange(3)))

    found = jax.grad(value, argnums=(0, 1))(state, jnp.eye(2, 3))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


RECORDS, WIDTH, BATCH, COUNT = 16_000, 64, 32, 512


def visit(memory: dict[str, Any], ids: jax.Array, vectors: jax.Array) -> tuple[dict[str, Any], jax.Array, jax.Array]:
    """What a step does with a bank."""
    bank = nnx.eval_shape(lambda: Bank(RECORDS, WIDTH, rngs=nnx.Rngs(params=0)))
    bank = nnx.merge(nnx.split(bank)[0], nnx.State(memory))
    own, others = bank.read(ids), bank.read(bank.draw(jax.random.key(0), COUNT))
    bank.update(ids, vectors, momentum=0.5)
    return nnx.to_pure_dict(nnx.state(bank)), own, others


def on_devices(count: int) -> tuple[Any, Any]:
    """The compiled visit, and what it gives for the same arguments."""
    mesh = sharding.create(MeshConfig(fsdp=min(2, count)), jax.devices()[:count])
    memory = {"bank": jnp.asarray(np.random.default_rng(0).standard_normal((16_384, WIDTH)), jnp.float32)}
    placed = sharding.state_shardings(mesh, memory)
    over = sharding.batch_sharding(mesh)
    ids = jnp.asarray(np.random.default_rng(1).choice(RECORDS, BATCH), jnp.int32)
    vectors = jnp.asarray(np.random.default_rng(2).standard_normal((BATCH, WIDTH)), jnp.float32)
    given = jax.device_put(memory, placed), *jax.device_put((ids, vectors), over)
    compiled = jax.jit(visit, out_shardings=(placed, over, over)).lower(*given).compile()
    return compiled, jax.tree.map(np.asarray, compiled(*given))


def test_on_eight_devices_rows_are_exchanged_and_never_the_bank():
    compiled, found = on_devices(8)
    jax.tree.map(np.testing.assert_array_equal, found, on_devices(1)[1])
    program = compiled.as_text()
    exchanged = 0
    for line in program.splitlines():
        if called := re.search(
            r" (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(-start)?\(", line
        ):
            shapes = re.findall(r"\w+\[([\d,]*)\]", line[: called.start()])
            exchanged = max([exchanged, *(np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes)])
    assert exchanged == COUNT * WIDTH
    # A shard is what a device holds of the bank; the whole would be eight times as large.
    assert f"f32[{16_384 // 8},{WIDTH}]" in program and f"f32[16384,{WIDTH}]" not in program
