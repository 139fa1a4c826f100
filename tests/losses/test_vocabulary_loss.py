"""The cross-entropy over a vocabulary in tiles: value and gradients of the dense form, on any mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.losses.captioning import reversed_texts, vocabulary_cross_entropy

BATCH, TOKENS, WIDTH, WORDS = 16, 5, 8, 1000


def given(dtype: Any = np.float32) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    states, table, bias = (rng.standard_normal(shape) for shape in ((BATCH, TOKENS, WIDTH), (WORDS, WIDTH), (WORDS,)))
    targets = rng.integers(0, WORDS, (BATCH, TOKENS))
    return *(jnp.asarray(x, dtype) for x in (states, table, bias)), jnp.asarray(targets, jnp.int32)


WEIGHTS = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (BATCH, TOKENS)), jnp.float32)


def weighted(function: Any, targets: jax.Array) -> Any:
    """The value and the gradients of a weighted sum of the losses."""
    total = lambda *given: jnp.sum(WEIGHTS * function(*given, targets))  # noqa: E731
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))


def dense(states: jax.Array, table: jax.Array, bias: jax.Array, targets: jax.Array) -> jax.Array:
    logits = states @ table.T + bias
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("tile", [0, 128, 300, 999])
@pytest.mark.parametrize("devices", [1, 8])
def test_value_and_gradients_are_the_dense_forms(tile, devices):
    *arrays, targets = given()
    mesh = sharding.create(MeshConfig(fsdp=min(2, devices)), jax.devices()[:devices])
    tiled = lambda *given: vocabulary_cross_entropy(*given, mesh=mesh, tile=tile)  # noqa: E731
    found, expected = (weighted(function, targets)(*arrays) for function in (tiled, dense))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(theirs))))


def test_float64_is_exact_to_its_own_rounding():
    with jax.enable_x64(True):
        states, table, bias, targets = given(np.float64)
        found = vocabulary_cross_entropy(states, table, bias, targets, tile=300)
        np.testing.assert_allclose(found, dense(states, table, bias, targets), rtol=1e-13)


def test_large_logits_neither_overflow_nor_lose_the_target():
    states, table, bias, targets = given()
    found = vocabulary_cross_entropy(1e4 * states, table, bias, targets, tile=128)
    np.testing.assert_allclose(found, dense(1e4 * states, table, bias, targets), rtol=1e-5, atol=1e-2)


def test_bfloat16_states_are_summed_in_float32():
    states, table, bias, targets = given()
    states, table = (x.astype(jnp.bfloat16) for x in (states, table))
    found = vocabulary_cross_entropy(states, table, bias, targets, tile=128)
    assert found.dtype == jnp.float32
    expected = dense(*(x.astype(jnp.float32) for x in (states, table, bias)), targets)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_tables_gradient_is_summed_in_float32_on_any_mesh():
    """Of bfloat16 states and a float32 table, as in training: on 8 devices as on one, far below bfloat16's rounding."""
    states, table, bias, targets = given()
    states, found = states.astype(jnp.bfloat16), []
    for devices in (1, 8):
        mesh = sharding.create(MeshConfig(), jax.devices()[:devices])

        def total(table: jax.Array, mesh: Any = mesh) -> jax.Array:
            return jnp.sum(vocabulary_cross_entropy(states, table, bias, targets, mesh=mesh))

        found.append(jax.jit(jax.grad(total))(table))
    assert found[1].dtype == jnp.float32
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


def logits_in(tile: int) -> int:
    """The largest array between input and gradients, in entries, of 4,096 tokens and 8,192 words."""
    shapes = ((64, 64, WIDTH), (8192, WIDTH), (8192,))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    targets = jnp.zeros((64, 64), jnp.int32)
    total = lambda *given: jnp.sum(vocabulary_cross_entropy(*given, targets, tile=tile))  # noqa: E731
    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arrays).as_text()
    return max(np.prod([int(n) for n in shape.split("x")[:-1]]) for shape in _tensors(text))


def _tensors(text: str) -> list[str]:
    return [part.partition(">")[0] for part in text.split("tensor<")[1:] if "x" in part.partition(">")[0]]


def test_no_array_is_larger_than_a_tile_of_the_logits():
    assert logits_in(tile=8192) == 4096 * 8192  # What the test would see.
    assert logits_in(tile=128) == 4096 * 128
    assert logits_in(tile=0) == 4096 * 4096


def test_a_text_is_reversed_up_to_its_end():
    tokens = jnp.array([[1, 7, 8, 9, 2], [1, 7, 2, 0, 0]])
    assert reversed_texts(tokens, jnp.array([4, 2])).tolist() == [[2, 9, 8, 7, 1], [2, 7, 1, 0, 0]]
