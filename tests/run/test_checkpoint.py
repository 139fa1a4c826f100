"""Checkpoints: equal bits on any mesh, atomic saves, and lookup in a workdir or a step's folder."""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxclip import checkpoint, methods, optimizer, sharding
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.step import Step, TrainState

CLIP = {
    "name": "clip",
    "embed_dim": 16,
    "image": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "heads": 2},
    "text": {"vocab_size": 64, "context_length": 8, "width": 32, "layers": 2, "heads": 2},
}
MODEL = {"config": {"seed": 0, "mean": 0.5, "templates": ["{c}", "ein Bär"], "none": None, "flip": False, "evals": {}}}


def mesh(devices: int, fsdp: int = 1) -> Mesh:
    return sharding.create(MeshConfig(fsdp=fsdp), jax.devices()[:devices])


@functools.cache
def step_on(devices: int, fsdp: int = 1) -> Step:
    method = methods.from_config(CLIP)
    return Step(method, optimizer.create(OptimizerConfig(learning_rate=1e-2), 10), mesh(devices, fsdp))


def filled(step: Step, seed: int = 0) -> TrainState:
    """A state of random numbers: nothing is compiled, and no two parts are alike."""
    rng = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(seed + 7), leaf.sharding)
        numbers = rng.standard_normal(leaf.shape) if leaf.dtype == np.float32 else rng.integers(1, 9, leaf.shape)
        return jax.device_put(np.asarray(numbers, leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, step.abstract_state)


def batch_of(step: Step) -> dict[str, jax.Array]:
    batch = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes(step.method.inputs(), 8))
    return jax.device_put(batch, sharding.batch_sharding(step.mesh))


def bits(tree) -> dict[str, bytes]:
    """Every array's dtype, shape and bytes, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(
            jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        found[jax.tree_util.keystr(path)] = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    return found


def saved(folder: pathlib.Path, state: TrainState, *steps: int, keep: int = 3) -> pathlib.Path:
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    for step in steps:
        checkpoints.save(step, state, MODEL)
    checkpoints.close()
    return folder


def three(workdir: pathlib.Path, values: dict) -> pathlib.Path:
    """Saves the steps 1, 2 and 3, each of other numbers, with its step among the values."""
    checkpoints = Checkpoints(workdir / "checkpoints", 3)
    for step in (1, 2, 3):
        checkpoints.save(step, filled(step_on(1), seed=step), values | {"step": step})
    checkpoints.close()
    return workdir


def test_a_state_is_restored_bit_for_bit_on_any_mesh(tmp_path):
    meshes_in_turn = [(8,), (1,), (4, 4), (8, 2)]
    state = filled(step_on(8))
    expected = bits(state)
    for turn, shape in enumerate(meshes_in_turn):
        saved(tmp_path / str(turn), state, 2)
        step = step_on(*shape)
        checkpoints = Checkpoints(tmp_path / str(turn) / "checkpoints", 3)
        state = checkpoints.restore(step.abstract_state).state
        checkpoints.close()
        assert bits(state) == expected, shape
        for leaf, asked in zip(jax.tree.leaves(state), jax.tree.leaves(step.abstract_state), strict=True):
            assert leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)


def test_a_restored_state_trains_on_as_if_it_had_never_been_saved(tmp_path):
    step = step_on(1)
    state = step.init(3)
    saved(tmp_path, state, 2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    restored = checkpoints.restore(step.abstract_state).state
    one, one_metrics = step.train(state, batch_of(step))
    other, other_metrics = step.train(restored, batch_of(step))
    checkpoints.close()
    assert bits(one) == bits(other)
    assert bits(one_metrics) == bits(other_metrics)


def test_the_last_few_are_kept_and_the_newest_is_the_latest(tmp_path):
    state = filled(step_on(1))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest is None
    for step in (3, 6, 9, 100):
        checkpoints.save(step, state, MODEL)
    checkpoints.close()
    assert sorted(child.name for child in (tmp_path / "checkpoints").iterdir()) == ["100", "9"]
    reopened = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert reopened.latest == 100
    reopened.close()


def test_a_step_that_is_saved_already_is_left_as_it_is(tmp_path):
    saved(tmp_path, filled(step_on(1)), 5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    saved(tmp_path, filled(step_on(1), seed=1), 5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before


def test_saving_does_not_hold_on_to_buffers_that_the_next_step_overwrites(tmp_path):
    """The step donates the state it is given, while the save of that state is still under way."""
    step = step_on(1)
    state = step.init(3)
    expected = bits(state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    checkpoints.save(1, state, MODEL)
    for _ in range(3):
        state, _ = step.train(state, batch_of(step))
    checkpoints.wait()
    assert bits(checkpoints.restore(step.abstract_state).state) == expected
    checkpoints.close()


def test_what_a_killed_save_leaves_is_ignored_and_cleared_away(tmp_path):
    state = filled(step_on(1))
    saved(tmp_path, state, 2)
    # Orbax writes into such a folder and renames it when all is there.
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    for part in ("model", "state.orbax-checkpoint-tmp"):
        (unfinished / part).mkdir(parents=True)
    assert checkpoint.find(tmp_path) == tmp_path / "checkpoints" / "2"
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    assert checkpoints.latest == 2
    assert bits(checkpoints.restore(step_on(1).abstract_state).state) == bits(state)
    checkpoints.save(4, state, MODEL)
    checkpoints.close()
    assert sorted(child.name for child in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def made_folders(folder: pathlib.Path, *steps: str, parts: tuple[str, ...] = ("model", "state")) -> None:
    for step in steps:
        for part in parts:
            (folder / "checkpoints" / step / part).mkdir(parents=True)


@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/10"])
def test_the_newest_checkpoint_is_found_from_a_workdir_and_from_its_folders(tmp_path, where):
    made_folders(tmp_path, "9", "10", "10.orbax-checkpoint-tmp", "12.damaged")
    assert checkpoint.find(tmp_path / where) == tmp_path / "checkpoints" / "10"


def test_a_newest_checkpoint_that_is_not_whole_is_not_passed_over_in_silence(tmp_path):
    made_folders(tmp_path, "9", "10")
    made_folders(tmp_path, "11", parts=("model",))
    with pytest.raises(checkpoint.Damaged, match="11 is damaged: its folder state is missing; .* by step=10 "):
        checkpoint.find(tmp_path)
    assert checkpoint.find(tmp_path, step=9) == tmp_path / "checkpoints" / "9"
    with pytest.raises(UserError, match="has no checkpoint of step 8; there are 11, 10, 9"):
        checkpoint.find(tmp_path, step=8)


def test_folders_with_numbers_for_names_are_not_taken_for_checkpoints(tmp_path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    assert checkpoint.find(tmp_path) is None


def test_a_step_that_is_named_is_the_one_that_is_found(tmp_path):
    for step in ("9", "10"):
        for part in ("model", "state"):
            (tmp_path / "checkpoints" / step / part).mkdir(parents=True)
    assert checkpoint.find(tmp_path / "checkpoints" / "9").name == "9"


@pytest.mark.parametrize("where", [".", "checkpoints", "missing", "file"])
def test_find_returns_none_without_a_checkpoint(tmp_path, where):
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert checkpoint.find(tmp_path / where) is None


def test_parameters_are_loaded_alone(tmp_path):
    state = filled(step_on(8))
    saved(tmp_path, state, 2)
    abstract = step_on(4, 4).abstract_state.params
    params, stats = checkpoint.load_variables(checkpoint.find(tmp_path), abstract, {})
    assert stats == {}
    assert bits(params) == bits(state.params)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    for leaf, asked in zip(jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)


def test_the_models_description_is_restored_unchanged(tmp_path):
    saved(tmp_path, filled(step_on(1)), 2)
    assert checkpoint.load_model(checkpoint.find(tmp_path)) == MODEL
