"""Frozen parameters: unchanged, without cost, and without effect on the training of others."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import methods, optimizer, sharding
from jaxclip.config import GroupConfig, MeshConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.parsing import parse
from jaxclip.step import Step, TrainState

TINY = {
    "name": "clip",
    "embed_dim": 16,
    "image": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2},
    "text": {"vocab_size": 50, "context_length": 6, "width": 16, "layers": 1, "heads": 2},
}
RESNET = {"name": "modified_resnet", "image_size": 32, "width": 2, "layers": (1, 1, 1, 1)}
BATCH = 8
SETTINGS = {"learning_rate": 1e-3, "warmup_steps": 0, "eps": 1e-3}


def frozen_by(match: str) -> tuple[GroupConfig, ...]:
    """The groups that freeze what an expression finds; none if it is empty."""
    return (GroupConfig(match, rate=0.0),) if match else ()


@functools.cache
def step_with(frozen: str, microbatches: int = 1, image: str = "vit") -> Step:
    method = methods.from_config(TINY if image == "vit" else TINY | {"image": RESNET})
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    adamw = optimizer.create(OptimizerConfig(**SETTINGS, groups=frozen_by(frozen)), 100)
    return Step(method, adamw, mesh, "float32", microbatches, frozen_by(frozen))


def batch(size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8),
        "text": rng.integers(0, 50, (BATCH, 6), dtype=np.int32),
        "text_end": rng.integers(0, 6, BATCH, dtype=np.int32),
    }


def made_up(step: Step, **params: Any) -> TrainState:
    """A state of random parameters before the first step; `params` replace those at the top."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        return np.asarray((name in ("scale", "var")) + 0.2 * rng.standard_normal(leaf.shape), np.float32)

    values, stats = jax.tree_util.tree_map_with_path(draw, (step.abstract_state.params, step.abstract_state.stats))
    stats = jax.tree.map(np.abs, stats)
    moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.abstract_state.opt_state)
    state = TrainState(np.int32(0), values | params, stats, moments, jax.random.key(7))
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))


@functools.cache
def compiled(frozen: str, microbatches: int = 1) -> Any:
    """The training step."""
    step = step_with(frozen, microbatches)
    return step.train.lower(step.abstract_state, batch()).compile()


def arrays(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


@functools.cache
def run(frozen: str, steps: int = 1, microbatches: int = 1) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Parameters after some steps, and the last one's metrics."""
    state = made_up(step_with(frozen, microbatches))
    for _ in range(steps):
        state, metrics = compiled(frozen, microbatches)(state, batch())
    return arrays(state.params), {name: float(value) for name, value in metrics.items()}


def start() -> dict[str, np.ndarray]:
    return arrays(made_up(step_with("")).params)


# ------------------------------------------------------------------------------------ what stays, what moves


@pytest.mark.parametrize("microbatches", [1, 2])
def test_matching_parameters_stay_bit_for_bit_and_all_others_change(microbatches):
    """Weight decay too, which needs no gradient, leaves it alone."""
    before, (after, _) = start(), run("^image/", 3, microbatches)
    for path, values in after.items():
        assert (values.tobytes() == before[path].tobytes()) == path.startswith("image/"), path


def test_the_expression_is_searched_for_in_the_whole_path():
    found = arrays(optimizer.frozen_paths(step_with("").abstract_state.params, frozen_by(r"ln_\d/scale|^logit")))
    assert {path for path, frozen in found.items() if frozen} == {
        "logit_scale",
        *(f"{tower}/transformer/blocks/ln_{n}/scale" for tower in ("image", "text") for n in (1, 2)),
    }


def test_the_others_first_update_is_that_of_a_run_without_frozen_parameters():
    """AdamW's first update of a parameter depends on its own gradient alone."""
    before, (frozen, _), (free, _) = start(), run("^image/"), run("")
    for path, values in frozen.items():
        if not path.startswith("image/"):
            moved = free[path] - before[path]
            np.testing.assert_allclose(values - before[path], moved, rtol=0, atol=1e-3 * np.abs(moved).max())
            assert np.abs(moved).max() > 1e-5


def test_the_gradient_norm_counts_only_what_is_trained():
    step = step_with("")
    state = made_up(step)
    loss = lambda params, rows: step.loss(params, {}, {}, rows)[0]  # noqa: E731
    gradients = arrays(jax.jit(jax.grad(loss))(state.params, batch()))
    norm = lambda kept: math.sqrt(sum(np.sum(np.square(gradients[path], dtype=float)) for path in kept))  # noqa: E731
    trained = [path for path in gradients if not path.startswith("image/")]
    assert run("^image/")[1]["grad_norm"] == pytest.approx(norm(trained), rel=1e-4)
    assert norm(gradients) > 1.01 * norm(trained)


def test_a_clamp_leaves_what_is_frozen_too():
    """Weights start with temperatures that are a rounding above what training would clamp them to."""
    state = made_up(step_with("^logit_scale"), logit_scale=np.float32(4.61))
    state, metrics = compiled("^logit_scale")(state, batch())
    assert float(state.params["logit_scale"]) == np.float32(4.61)
    assert float(metrics["logit_scale"]) == pytest.approx(math.exp(4.61), rel=1e-5)


# ----------------------------------------------------------------------------------------- the optimizer


def test_frozen_parameters_have_no_moments():
    params = step_with("").abstract_state.params
    sizes = {path: math.prod(leaf.shape) for path, leaf in paths(params).items()}
    trained = sum(size for path, size in sizes.items() if not path.startswith("image/"))
    moments = {path: leaf for path, leaf in paths(step_with("^image/").abstract_state.opt_state).items() if leaf.ndim}
    assert not [path for path in moments if "image/" in path]
    # Scalars are counts, and the temperature's two moments.
    assert sum(math.prod(leaf.shape) for leaf in moments.values()) == 2 * (trained - 1)


def paths(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_trained_parameters_are_updated_as_if_there_were_no_others():
    """Clipping by the global norm among the rest: that of a frozen parameter's gradient does not count."""
    rng = np.random.default_rng(2)
    draw = lambda size: {"kernel": np.float32(size * rng.standard_normal((3, 2))), "bias": np.float32([size, 1])}  # noqa: E731
    settings = OptimizerConfig(**SETTINGS | {"clip_norm": 1.0})
    alone = optimizer.create(settings, 10)
    beside = optimizer.create(OptimizerConfig(**SETTINGS | {"clip_norm": 1.0, "groups": frozen_by("^image")}), 10)
    params = {"text": draw(1.0)}
    both = params | {"image": draw(1.0)}
    state, both_state = alone.init(params), beside.init(both)
    update, update_both = jax.jit(alone.update), jax.jit(beside.update)
    for size in (0.1, 1.0, 10.0):
        gradients = {"text": draw(size)}
        expected, state = update(gradients, state, params)
        found, both_state = update_both(gradients | {"image": draw(100.0)}, both_state, both)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found["text"], expected["text"])
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["image"]))


# ----------------------------------------------------------------------------------------- batch statistics


def forward(frozen: str) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The training loss, and the batch statistics before and after."""
    step = step_with(frozen, image="resnet")
    state = made_up(step)
    loss, (_, after, _) = jax.jit(step.loss)(state.params, state.stats, {}, batch(32), jax.random.key(0))
    return float(loss), arrays(state.stats), arrays(after)


def test_frozen_layers_normalize_by_their_running_averages_and_keep_them():
    loss, before, after = forward("^image/")
    jax.tree.map(np.testing.assert_array_equal, after, before)
    step = step_with("^image/", image="resnet")
    assert loss == pytest.approx(float(step.validate(made_up(step).variables, {}, batch(32))["loss"]), rel=1e-5)


def test_layers_that_are_trained_beside_them_move_theirs():
    loss, before, after = forward("^image/layer[12]_")
    frozen = {path for path in before if re.match("image/layer[12]_", path)}
    assert 0 < len(frozen) < len(before)
    for path, values in after.items():
        assert np.array_equal(values, before[path]) == (path in frozen), path
    assert loss != pytest.approx(forward("^image/")[0], rel=1e-4)


# --------------------------------------------------------------------------------------------- the work


def products(jaxpr) -> int:
    """How many matrix products a program does."""
    inner = [part for equation in jaxpr.eqns for part in jax.core.jaxprs_in_params(equation.params)]
    return sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns) + sum(map(products, inner))


def test_a_frozen_tower_has_no_backward_pass():
    counts = {}
    for frozen in ("", "^image", "^text"):
        step = step_with(frozen)
        counts[frozen] = products(jax.make_jaxpr(step.train)(step.abstract_state, batch()).jaxpr)
    # Each tower has six products in its block and a projection, and each product has a gradient by either side. The
    # image tower has one more, of the patches, whose pixels need no gradient.
    assert counts[""] - counts["^image"] == 2 * 7 + 1
    assert counts[""] - counts["^text"] == 2 * 7


# ------------------------------------------------------------------------------------------------ mistakes


GROUPS = {
    "nothing is found": (
        (GroupConfig("^vision/"),),
        "[0].match='^vision/' is found in no parameter's path, such as image/",
    ),
    "an earlier rule has all": (
        (GroupConfig("^image/", rate=0.5), GroupConfig("^image/positions", rate=0.1)),
        "[1].match='^image/positions' finds only parameters of the rules before it, such as image/positions",
    ),
    "layers where there are none": (
        (GroupConfig("^image/", layer_decay=0.5),),
        "[0].layer_decay=0.5 is for stacked blocks, and image/class_embedding is none",
    ),
    "one rule freezes everything": ((GroupConfig(".", rate=0.0),), " freeze every parameter"),
    "two rules freeze everything": (
        (GroupConfig("^image", rate=0.0), GroupConfig("^(text|logit)", rate=0.0)),
        " freeze every parameter",
    ),
}


@pytest.mark.parametrize(("groups", "said"), GROUPS.values(), ids=GROUPS)
def test_rules_that_match_no_or_freeze_all_parameters_are_an_error(groups, said):
    with pytest.raises(UserError, match=re.escape(f"config.optimizer.groups{said}")) as error:
        optimizer.check_groups(step_with("").abstract_state.params, groups)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("match", ["", "^image/", "^image/.*blocks/"])
def test_rules_that_match_some_parameters_are_valid(match):
    optimizer.check_groups(step_with("").abstract_state.params, frozen_by(match))


def test_the_first_rule_that_matches_decides_what_is_frozen():
    """A part of a frozen tower is trained by a rule before the one that freezes it."""
    groups = (GroupConfig("^image_projection/"), *frozen_by("^image"))
    assert [
        optimizer.is_frozen(path, groups) for path in ("image_projection/kernel", "image/positions", "text/positions")
    ] == [
        False,
        True,
        False,
    ]


def test_what_is_no_regular_expression_is_an_error():
    given = {"learning_rate": 1e-3, "groups": ({"match": "^image/"}, {"match": "^image("})}
    with pytest.raises(
        UserError, match=r"config.optimizer.groups\[1\].match='\^image\(' is not a regular expression"
    ) as error:
        parse(OptimizerConfig, given, "config.optimizer")
    assert "\n" not in str(error.value)


def test_a_frozen_tower_with_batch_statistics_takes_micro_batches():
    """A record's embedding no longer depends on the others, so that parts give what the whole gives."""
    found = []
    for microbatches in (1, 2):
        step = step_with("^image/", microbatches, "resnet")
        state = made_up(step)
        rows = jax.device_put(batch(32))
        loss, (_, stats, _) = jax.jit(step.loss)(state.params, state.stats, {}, rows, jax.random.key(0))
        np.testing.assert_equal(arrays(stats), arrays(state.stats))
        found.append(float(loss))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
