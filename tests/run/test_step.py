"""The training step: equal on every mesh, exact in its metrics, and random only where intended."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import methods, optimizer, sharding
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.step import Step, TrainState, compute_dtype

SIZES = {"width": 32, "layers": 2, "heads": 2}
TINY = {
    "name": "clip",
    "embed_dim": 16,
    "image": {"image_size": 16, "patch_size": 4, "patch_drop": 0.5} | SIZES,
    "text": {"vocab_size": 50, "context_length": 6} | SIZES,
}
BATCH = 16
LEARNING_RATE = 1e-3


@functools.cache
def step_on(devices: int, fsdp: int, precision: str = "float32", patch_drop: float = 0.5) -> Step:
    method = methods.from_config(TINY | {"image": TINY["image"] | {"patch_drop": patch_drop}})
    # The eps is large because the division by a gradient that is zero but for rounding would magnify the rounding.
    adamw = optimizer.create(OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=0, eps=1e-3), 100)
    return Step(method, adamw, sharding.create(MeshConfig(fsdp=fsdp), jax.devices()[:devices]), precision)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 50, (BATCH, 6), dtype=np.int32),
        "text_end": rng.integers(0, 6, BATCH, dtype=np.int32),
    }


@functools.cache
def first_params():
    """Fresh parameters as plain arrays, with a state to put them into for each mesh."""
    return jax.tree.map(np.asarray, step_on(1, 1).init(3).params)


def fresh(step: Step, **params) -> TrainState:
    """A state before the first step, laid on the step's mesh; `params` replace parameters at the top."""
    values = jax.tree.map(jnp.array, first_params() | params)
    state = TrainState(jnp.zeros((), jnp.int32), values, {}, step.optimizer.init(values), jax.random.key(7))
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))


def run(step: Step, state: TrainState, steps: int) -> tuple[TrainState, list[dict[str, float]]]:
    rows = []
    for _ in range(steps):
        state, metrics = step.train(state, batch())
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


@functools.cache
def three_steps(devices: int, fsdp: int):
    """Three steps' metrics and the parameters after them, as plain arrays."""
    step = step_on(devices, fsdp)
    state, rows = run(step, fresh(step), 3)
    return rows, jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 2), (8, 8)])
def test_losses_and_updates_do_not_depend_on_the_mesh(devices, fsdp):
    expected_rows, expected_params = three_steps(1, 1)
    rows, params = three_steps(devices, fsdp)
    assert rows[0] == pytest.approx(expected_rows[0], rel=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected_rows], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), params, expected_params)
    # Every parameter's update is more than fifty times as large.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, first_params())
    assert min(jax.tree.leaves(moved)) > LEARNING_RATE / 2


def test_a_state_starts_the_same_on_every_mesh():
    one, eight = (jax.tree.map(np.asarray, step_on(*shape).init(3).params) for shape in ((1, 1), (8, 8)))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_the_seed_decides_where_a_run_starts():
    states = [step_on(1, 1).init(seed) for seed in (3, 3, 4)]
    first, again, other = (np.asarray(state.params["text_projection"]["kernel"]) for state in states)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert states[0].key == states[1].key != states[2].key
    assert [int(state.step) for state in states] == [0, 0, 0]


def test_a_step_counts_and_keeps_the_key():
    step = step_on(1, 1)
    state, _ = run(step, fresh(step), 2)
    assert int(state.step) == 2
    assert state.key == jax.random.key(7)


def test_the_metrics_are_those_of_the_parameters_before_the_update():
    rows, _ = three_steps(1, 1)
    of_clip = {"batch_accuracy", "logit_scale", "image_spread", "text_spread"}
    assert rows[0].keys() == {"loss", "grad_norm", "param_norm", "finite"} | of_clip
    norm = math.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(first_params())))
    assert rows[0]["param_norm"] == pytest.approx(norm, rel=1e-6)
    assert rows[0]["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-6)
    assert rows[0]["grad_norm"] > 0.1


def test_a_model_learns_a_batch_by_heart():
    step = step_on(1, 1)
    _, rows = run(step, fresh(step), 60)
    assert rows[0]["loss"] > 2
    assert rows[-1]["loss"] < 0.3 and rows[-1]["batch_accuracy"] > 0.9


def test_two_steps_compile_once():
    step = step_on(1, 1)
    run(step, fresh(step), 2)
    assert step.train._cache_size() == 1


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 8)])
def test_the_old_states_memory_is_given_to_the_new_one(devices, fsdp):
    step = step_on(devices, fsdp)
    state = fresh(step)
    run(step, state, 1)
    kept = [path for path, leaf in jax.tree_util.tree_leaves_with_path(state) if not leaf.is_deleted()]
    assert kept == []


def test_under_fsdp_a_device_holds_an_eighth_of_what_is_large():
    step = step_on(8, 8)
    state, _ = run(step, fresh(step), 1)
    on_one = whole = 0
    for (path, leaf), abstract in zip(
        jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)),
        jax.tree.leaves((step.abstract_state.params, step.abstract_state.opt_state)),
        strict=True,
    ):
        assert leaf.sharding == abstract.sharding, path
        shard = leaf.addressable_shards[0].data
        assert shard.shape == abstract.sharding.shard_shape(leaf.shape), path
        if jax.tree_util.keystr(path, simple=True).endswith("_kernel"):
            assert shard.size * 8 == leaf.size, path
        on_one += shard.nbytes
        whole += leaf.nbytes
    # Gains, biases and positions stay whole; in a model of width 32 they are a tenth.
    assert on_one < 0.22 * whole


def test_the_temperature_does_not_fall_below_one_hundredth():
    """The published clamp: logit_scale <= ln 100, whatever the update was."""
    step = step_on(1, 1)
    above, _ = run(step, fresh(step, logit_scale=np.float32(4.7)), 1)
    below, _ = run(step, fresh(step, logit_scale=np.float32(4.5)), 1)
    assert float(above.params["logit_scale"]) == np.float32(math.log(100))
    # The first step of Adam is the learning rate, up or down.
    assert abs(float(below.params["logit_scale"]) - 4.5) == pytest.approx(LEARNING_RATE, rel=0.01)


def test_every_step_drops_other_patches():
    step = step_on(1, 1)
    losses = []
    for number in (0, 0, 1):
        state = dataclasses.replace(fresh(step), step=jnp.asarray(number, jnp.int32))
        losses.append(run(step, state, 1)[1][0]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_validation_uses_every_patch_and_no_randomness():
    dropping, whole = step_on(1, 1), step_on(1, 1, patch_drop=0.0)
    params = fresh(dropping).params
    first, again, all_patches = (
        {name: float(value) for name, value in step.validate(params, {}, batch()).items()}
        for step in (dropping, dropping, whole)
    )
    assert first == again == all_patches
    assert first.keys() == {"loss", "batch_accuracy", "logit_scale", "image_spread", "text_spread"}
    assert first["loss"] != three_steps(1, 1)[0][0]["loss"]


def test_validation_leaves_the_parameters_in_place():
    step = step_on(1, 1)
    params = fresh(step).params
    step.validate(params, {}, batch())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("precision", "platform", "dtype"),
    [
        ("auto", "cpu", jnp.float32),
        ("auto", "gpu", jnp.bfloat16),
        ("auto", "tpu", jnp.bfloat16),
        ("bfloat16", "cpu", jnp.bfloat16),
        ("float32", "tpu", jnp.float32),
    ],
)
def test_precision(precision, platform, dtype):
    assert compute_dtype(precision, platform) == dtype


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_bfloat16_is_for_the_towers_products_only():
    """Statistics, logits and the loss stay in float32, and so do parameters and moments."""
    step = step_on(1, 1, "bfloat16")
    state, metrics = jax.eval_shape(step.train, step.abstract_state, batch())
    floats = [leaf for leaf in jax.tree.leaves((state, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}

    program = list(equations(jax.make_jaxpr(step.validate)(step.abstract_state.params, {}, batch()).jaxpr))
    products = [equation for equation in program if equation.primitive.name == "dot_general"]
    # Patches, six of each tower's scanned block, two projections, and the logits.
    assert len(products) == 1 + 2 * 6 + 2 + 1
    assert all(equation.invars[0].aval.dtype == jnp.bfloat16 for equation in products)
    [logits] = [equation for equation in products if equation.params["precision"] is not None]
    assert logits.outvars[0].aval.str_short() == f"float32[{BATCH},{BATCH}]"
    for equation in program:
        if equation.primitive.name in ("exp", "log", "rsqrt", "reduce_sum", "reduce_max"):
            assert equation.outvars[0].aval.dtype == jnp.float32, equation


def test_activations_are_pinned_to_the_batchs_devices_at_the_edges_of_blocks():
    """Before the blocks of each tower and after every one, and both towers' embeddings."""
    step = step_on(8, 8)
    program = equations(jax.make_jaxpr(step.validate)(step.abstract_state.params, {}, batch()).jaxpr)
    pins = [equation for equation in program if equation.primitive.name == "sharding_constraint"]
    image, text, embedded = (BATCH, 17, 32), (BATCH, 6, 32), (BATCH, 16)
    assert [pin.outvars[0].aval.shape for pin in pins] == [image, image, text, text, embedded, embedded]
    assert {pin.params["sharding"].spec for pin in pins} == {sharding.BATCH}


def test_bfloat16_gives_nearly_the_same_loss():
    params = fresh(step_on(1, 1)).params
    exact, rounded = (
        float(step.validate(params, {}, batch())["loss"]) for step in (step_on(1, 1), step_on(1, 1, "bfloat16"))
    )
    # Cosines are off by some 2^-8 and are multiplied by 14.3.
    assert 0 < abs(exact - rounded) < 14.3 * 2**-8
