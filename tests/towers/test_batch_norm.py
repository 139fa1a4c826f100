"""BatchNorm: normalization by statistics of the global batch, and torch's running averages."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.errors import UserError
from jaxclip.towers.batch_norm import BatchNorm

CHANNELS = 5
SHAPE = (8, 4, 3, CHANNELS)


def made_up(seed: int = 0, groups: int = 1) -> BatchNorm:
    """A layer whose four arrays are all random."""
    rng = np.random.default_rng(seed)
    norm = BatchNorm(CHANNELS, groups)
    norm.scale[...] = jnp.asarray(1 + 0.3 * rng.standard_normal(CHANNELS), jnp.float32)
    norm.bias[...] = jnp.asarray(rng.standard_normal(CHANNELS), jnp.float32)
    norm.mean[...] = jnp.asarray(rng.standard_normal(CHANNELS), jnp.float32)
    norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, CHANNELS), jnp.float32)
    return norm


def exact(array) -> np.ndarray:
    return np.asarray(array, np.float64)


def normalized(x, mean, var, norm: BatchNorm) -> np.ndarray:
    return (exact(x) - mean) / np.sqrt(var + 1e-5) * exact(norm.scale[...]) + exact(norm.bias[...])


def batch(seed: int, mean: float = 0.5, std: float = 2.0, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(mean + std * np.random.default_rng(seed).standard_normal(SHAPE), dtype)


def test_a_new_layer_starts_as_torchs():
    norm = BatchNorm(3)
    found = {name: np.asarray(getattr(norm, name)[...]) for name in ("scale", "bias", "mean", "var")}
    expected = {"scale": np.ones(3), "bias": np.zeros(3), "mean": np.zeros(3), "var": np.ones(3)}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    params, averages = nnx.state(norm, nnx.Param), nnx.state(norm, nnx.BatchStat)
    assert (set(params), set(averages)) == ({"scale", "bias"}, {"mean", "var"})


def test_training_normalizes_by_the_batchs_own_biased_statistics():
    norm, x = made_up(), batch(1)
    values = exact(x)
    expected = normalized(x, values.mean((0, 1, 2)), values.var((0, 1, 2)), norm)
    np.testing.assert_allclose(norm(x, True), expected, rtol=0, atol=1e-5)


def test_running_averages_move_a_tenth_towards_each_batchs_mean_and_unbiased_variance():
    norm = made_up()
    mean, var = exact(norm.mean[...]), exact(norm.var[...])
    for seed in range(4):
        x = batch(seed, mean=seed, std=1 + seed)
        norm(x, True)
        mean = 0.9 * mean + 0.1 * exact(x).mean((0, 1, 2))
        var = 0.9 * var + 0.1 * exact(x).var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)


def test_evaluation_uses_the_running_averages_and_leaves_them():
    norm, x = made_up(), batch(1)
    mean, var = np.array(norm.mean[...]), np.array(norm.var[...])
    expected = normalized(x, exact(mean), exact(var), norm)
    np.testing.assert_allclose(norm(x, False), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], mean)
    np.testing.assert_array_equal(norm.var[...], var)


def test_a_locked_layer_does_in_training_what_it_does_in_evaluation():
    norm, x = made_up(), batch(1)
    expected, mean, var = norm(x, False), np.array(norm.mean[...]), np.array(norm.var[...])
    norm.locked = True
    np.testing.assert_array_equal(norm(x, True), expected)
    np.testing.assert_array_equal(norm.mean[...], mean)
    np.testing.assert_array_equal(norm.var[...], var)


@pytest.mark.parametrize("corner", [None, -1000.0], ids=["alike", "first pixel far off"])
def test_large_means_do_not_cancel(corner):
    """In float32 the mean of squares less the square of the mean would be off by some 6 %."""
    norm, x = BatchNorm(CHANNELS), batch(1, mean=1000, std=1)
    if corner is not None:
        x = x.at[:, 0, 0].set(corner)
    values = exact(x)
    mean, var = values.mean((0, 1, 2)), values.var((0, 1, 2))
    # float32 holds a mean of 1000 to half of 6e-5.
    np.testing.assert_allclose(norm(x, True), normalized(x, mean, var, norm), rtol=0, atol=5e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * values.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_a_channel_without_variance_is_its_bias():
    norm = made_up()
    x = jnp.full(SHAPE, 1000.1, jnp.float32)
    # 1000.1 summed and divided again is 1000.1 to some eps32, which is multiplied by 1 / sqrt(1e-5).
    np.testing.assert_allclose(norm(x, True), np.broadcast_to(norm.bias[...], SHAPE), rtol=0, atol=0.1)
    assert np.all(np.isfinite(norm.var[...]))


def test_bfloat16_is_normalized_in_float32_and_given_back_as_bfloat16():
    norm, x = made_up(), batch(1, mean=100, std=3, dtype=jnp.bfloat16)
    values = exact(x)
    expected = normalized(x, values.mean((0, 1, 2)), values.var((0, 1, 2)), norm)
    found = norm(x, True)
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16.
    np.testing.assert_allclose(exact(found), expected, rtol=2**-8, atol=1e-4)
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    np.testing.assert_allclose(
        norm.mean[...], 0.9 * exact(made_up().mean[...]) + 0.1 * values.mean((0, 1, 2)), rtol=1e-5
    )


@functools.cache
def weights() -> jax.Array:
    """Makes of an output a number that depends on all of it."""
    return batch(2)


@jax.jit
def differentiate(params, x):
    """Output, gradients and running averages of the made-up layer with these parameters."""
    graph, _, averages = nnx.split(made_up(), nnx.Param, nnx.BatchStat)

    def value(params, x):
        norm = nnx.merge(graph, nnx.State(params), nnx.State(nnx.to_pure_dict(averages)))
        y = norm(x, True)
        return jnp.sum(weights() * y), (y, nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)))

    (_, (y, after)), gradients = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, x)
    return y, gradients, after


def params_of(norm: BatchNorm):
    return nnx.to_pure_dict(nnx.state(norm, nnx.Param))


def test_gradients_go_through_the_statistics():
    """Ioffe & Szegedy 2015, section 3, in float64."""
    norm, x, dy = made_up(), batch(1), exact(weights())
    deviation = np.sqrt(exact(x).var((0, 1, 2)) + 1e-5)
    unit = (exact(x) - exact(x).mean((0, 1, 2))) / deviation
    dbias, dscale = dy.sum((0, 1, 2)), (dy * unit).sum((0, 1, 2))
    count = x.size / CHANNELS
    dx = exact(norm.scale[...]) / deviation * (dy - dbias / count - unit * dscale / count)
    (found, found_dx), _ = differentiate(params_of(norm), x)[1:]
    np.testing.assert_allclose(found["bias"], dbias, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["scale"], dscale, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found_dx, dx, rtol=0, atol=1e-5)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_statistics_are_those_of_the_global_batch(devices):
    # Rows differ by more than their pixels do, so that a device's own statistics are far from the batch's.
    x = batch(1) + 3 * jnp.arange(SHAPE[0], dtype=jnp.float32)[:, None, None, None]
    expected = differentiate(params_of(made_up()), x)
    mesh = sharding.create(MeshConfig(fsdp=2), jax.devices()[:devices])
    rows = jax.device_put(x, sharding.batch_sharding(mesh))
    found = differentiate(params_of(made_up()), rows)
    assert len(found[0].sharding.device_set) == devices
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1, np.abs(b).max()))  # noqa: E731
    jax.tree.map(same, found, expected)


# ---------------------------------------------------------------------------------------------------- groups


def uneven() -> jax.Array:
    """A batch whose rows differ by more than their pixels do."""
    return batch(1) + 3 * jnp.arange(SHAPE[0], dtype=jnp.float32)[:, None, None, None]


@pytest.mark.parametrize("groups", [2, 4])
def test_each_group_of_rows_is_normalized_by_its_own_statistics(groups):
    x, plain = uneven(), made_up()
    grouped = made_up(groups=groups)
    found = grouped(x, True)
    for part, rows in zip(np.split(exact(x), groups), np.split(np.asarray(found), groups), strict=True):
        expected = normalized(part, part.mean((0, 1, 2)), part.var((0, 1, 2)), plain)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    parts = np.split(exact(x), groups)
    mean = np.mean([part.mean((0, 1, 2)) for part in parts], axis=0)
    var = np.mean([part.var((0, 1, 2), ddof=1) for part in parts], axis=0)
    # A mean of one channel is the small difference of larger numbers.
    np.testing.assert_allclose(grouped.mean[...], 0.9 * exact(plain.mean[...]) + 0.1 * mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(grouped.var[...], 0.9 * exact(plain.var[...]) + 0.1 * var, rtol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_groups_are_those_of_the_batch_whatever_the_devices(devices):
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        @jax.jit
        def training(x):
            norm = made_up(groups=4)
            return norm(x, True), norm.mean[...], norm.var[...]

        return training(x)

    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    found = run(jax.device_put(uneven(), sharding.batch_sharding(mesh)))
    for one, other in zip(found, run(uneven()), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="norm_groups=3 must divide the batch of 8 images"):
        made_up(groups=3)(batch(1), True)


def test_groups_do_not_matter_in_evaluation():
    np.testing.assert_array_equal(made_up(groups=3)(batch(1), False), made_up()(batch(1), False))
