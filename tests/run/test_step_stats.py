"""Batch statistics in the training state: computed over the global batch, saved, and used in evaluation."""

from __future__ import annotations

import functools
import math
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import loss_reference
import numpy as np
import pytest
from commands import environment, losses, recipe, run

from jaxclip import checkpoint, methods, optimizer, sharding
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import Config, MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.data import tokenizers
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.parsing import parse
from jaxclip.step import Step, TrainState

RESNET = {"name": "modified_resnet", "image_size": 64, "width": 4, "layers": (1, 1, 1, 1)}
TEXT = {"vocab_size": 50, "context_length": 6, "width": 32, "layers": 1, "heads": 2}
BATCH = 16


def method(**image) -> Any:
    towers = {"image": RESNET | image, "text": TEXT, "image_projection_bias": True}
    return methods.from_config({"name": "clip", "embed_dim": 16} | towers)


@functools.cache
def step_on(devices: int, remat: str) -> Step:
    # The eps is large because the division by a gradient that is zero but for rounding would magnify the rounding.
    adamw = optimizer.create(OptimizerConfig(learning_rate=1e-3, warmup_steps=0, eps=1e-2), 100)
    mesh = sharding.create(MeshConfig(fsdp=min(devices, 2)), jax.devices()[:devices])
    return Step(method(remat=remat), adamw, mesh, "float32")


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Images grow brighter from row to row: the statistics of a device's own rows are far from the batch's."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 100, (BATCH, 64, 64, 3))
    return {
        "image": (noise + 10 * np.arange(BATCH)[:, None, None, None]).astype(np.uint8),
        "text": rng.integers(0, 50, (BATCH, 6), dtype=np.int32),
        "text_end": rng.integers(0, 6, BATCH, dtype=np.int32),
    }


def draw(tree: Any, seed: int = 1) -> Any:
    """Random values for all a model holds: gains of zero and averages of one would hide mistakes."""
    rng = np.random.default_rng(seed)

    def values(path, leaf):
        numbers, name = rng.standard_normal(leaf.shape), path[-1].key
        if name == "var":
            return np.exp(0.3 * numbers).astype(np.float32)
        if leaf.ndim > 1:
            return (numbers * math.sqrt(2 / math.prod(leaf.shape[:-1]))).astype(np.float32)
        return ({"scale": 1, "logit_scale": 3}.get(name, 0) + 0.2 * numbers).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, tree)


def made_up(step: Step, seed: int = 1) -> TrainState:
    """A state before the first step on the step's mesh, nothing of it compiled."""
    params, stats = draw((step.abstract_state.params, step.abstract_state.stats), seed)
    moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.abstract_state.opt_state)
    state = TrainState(
        step=np.int32(0),
        params=params,
        stats=stats,
        opt_state=moments,
        key=jax.random.key(7),
        memory={},
        average={},
        rate=np.float32(1),
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))


@functools.cache
def after_a_step(devices: int, remat: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and the parameters and running averages after one step, by path."""
    step = step_on(devices, remat)
    rows = jax.device_put(batch(), sharding.batch_sharding(step.mesh))
    compiled = step.train.lower(step.abstract_state, rows).compile()
    state, metrics = compiled(made_up(step), rows)
    return {name: float(value) for name, value in metrics.items()}, arrays(state.variables)


def arrays(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def variables() -> dict[str, np.ndarray]:
    return arrays(made_up(step_on(1, "none")).variables)


def test_a_step_moves_the_running_averages_towards_the_global_batch():
    """The first layer's, from its definition in float64, on eight devices of two images each."""
    before, (_, after) = variables(), after_a_step(8, "none")
    pixels, x = method().pixels, batch()["image"].astype(np.float64) / 255
    x = np.pad((x - pixels.mean) / pixels.std, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = before["image/conv1_kernel"].astype(np.float64)
    y = sum(x[:, i : i + 63 : 2, j : j + 63 : 2] @ kernel[i, j] for i in range(3) for j in range(3))
    for name, values in (("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2), ddof=1))):
        expected = 0.9 * before[f"image/bn1/{name}"] + 0.1 * values
        np.testing.assert_allclose(after[f"image/bn1/{name}"], expected, rtol=1e-5, atol=1e-6)


def test_a_step_moves_the_running_averages_of_every_layer():
    before, (_, after) = variables(), after_a_step(8, "none")
    stats = arrays(step_on(1, "none").abstract_state.stats)
    # The stem's three, three of each bottleneck, and one of each shortcut.
    assert len(stats) == 2 * (3 + 3 * 4 + 4)
    assert all(np.all(before[path] != after[path]) for path in stats)


def assert_same(found: tuple, expected: tuple, rtol: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    for path, values in expected[1].items():
        np.testing.assert_allclose(found[1][path], values, rtol=rtol, atol=1e-5, err_msg=path)


def test_losses_updates_and_running_averages_do_not_depend_on_the_mesh():
    assert_same(after_a_step(8, "none"), after_a_step(1, "none"), 1e-4)


@pytest.mark.slow
def test_remat_changes_neither_losses_nor_updates_nor_running_averages():
    assert_same(after_a_step(1, "full"), after_a_step(1, "none"), 1e-4)


# -------------------------------------------------------------------------------------- evaluation


def test_validation_and_the_encoder_use_the_running_averages_and_leave_them():
    step = step_on(1, "none")
    held = made_up(step).variables
    before, rows = arrays(held), batch()
    encoder = Encoder(step.method, step.mesh, "float32", tokenizers.train(["a dog"], 520), batch_size=BATCH)
    images = encoder.images(held, rows["image"])
    # Of their own statistics these three rows would have others, and so would they beside rows of padding.
    np.testing.assert_array_equal(encoder.images(held, rows["image"][5:8]), images[5:8])

    found = {name: float(value) for name, value in step.validate(held, {}, rows).items()}
    texts = step.model(held).encode_text(*map(jnp.asarray, (rows["text"], rows["text_end"])), Context())
    scale = math.exp(before["logit_scale"])
    assert found["loss"] == pytest.approx(loss_reference.softmax(images, np.asarray(texts), scale).loss, rel=1e-5)
    assert found["loss"] != pytest.approx(after_a_step(1, "none")[0]["loss"], rel=1e-3)
    jax.tree.map(np.testing.assert_array_equal, arrays(held), before)
    assert float(step.validate(held, {}, rows)["loss"]) == found["loss"]


# ------------------------------------------------------------------------------------- checkpoints


def saved(folder: pathlib.Path, state: TrainState) -> pathlib.Path:
    checkpoints = Checkpoints(folder / "checkpoints", 3)
    checkpoints.save(2, state, {"config": {}})
    checkpoints.close()
    return folder / "checkpoints" / "2"


def bits(tree: Any) -> dict[str, bytes]:
    return {path: values.tobytes() for path, values in arrays(tree).items()}


def test_a_checkpoint_keeps_the_running_averages_bit_for_bit_on_any_mesh(tmp_path):
    state = made_up(step_on(8, "none"))
    folder = saved(tmp_path, state)
    abstract = step_on(1, "none").abstract_state
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    restored = checkpoints.restore(abstract).state
    checkpoints.close()
    assert bits((restored.params, restored.stats)) == bits((state.params, state.stats))
    params, stats = checkpoint.load_variables(folder, abstract.params, abstract.stats)
    assert (bits(params), bits(stats)) == (bits(state.params), bits(state.stats))
    assert {leaf.sharding for leaf in jax.tree.leaves(stats)} == {
        leaf.sharding for leaf in jax.tree.leaves(abstract.stats)
    }


def test_weights_saved_without_an_optimizer_keep_them_too(tmp_path):
    step = step_on(1, "none")
    state, abstract = made_up(step), step.abstract_state
    checkpoint.save_variables(tmp_path / "weights", state.params, state.stats, {"method": {}})
    found = checkpoint.load_variables(tmp_path / "weights", abstract.params, abstract.stats)
    assert bits(found) == bits((state.params, state.stats))


def test_a_checkpoint_contains_statistics_only_if_there_are_some(tmp_path):
    vit = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
    plain = methods.from_config({"name": "clip", "embed_dim": 16, "image": vit, "text": TEXT})
    without = Step(plain, step_on(1, "none").optimizer, step_on(1, "none").mesh, "float32")
    assert without.abstract_state.stats == {}
    for name, step in (("with", step_on(1, "none")), ("without", without)):
        folder = saved(tmp_path / name, made_up(step))
        names = set(re.findall(r'"key": "(\w+)"', (folder / "state" / "_METADATA").read_text()))
        assert {"params", "opt_state", "step"} <= names
        assert ("stats" in names) == (name == "with")


# ------------------------------------------------------------------------------------------- runs

CHANGE = f"""
config.steps = 4
config.data.flip = True
config.method.image = {RESNET | {"image_size": 32, "width": 2}}
config.method.image_projection_bias = True
"""


def final_variables(workdir: pathlib.Path) -> dict[str, bytes]:
    folder = checkpoint.find(workdir)
    config = parse(Config, checkpoint.load_model(folder)["config"])
    abstract = sharding.placed(step_on(1, "none").mesh, *methods.abstract_variables(methods.from_config(config.method)))
    return bits(checkpoint.load_variables(folder, *abstract))


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_as_if_unbroken(tmp_path):
    config = f"--config={recipe(tmp_path, CHANGE)}"
    env = environment()
    assert (result := run([config, f"--workdir={tmp_path}/unbroken"], env)).status == 0, result.stderr
    # The files of a run that is killed after its third step: a checkpoint of the second, lines of three.
    shutil.copytree(tmp_path / "unbroken", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))

    result = run([config, f"--workdir={tmp_path}/cut"], env)
    assert result.status == 0, result.stderr
    assert result.stderr.startswith("continuing from the checkpoint of step 2 in ")
    assert losses(tmp_path / "cut") == losses(tmp_path / "unbroken")
    assert [*losses(tmp_path / "cut")] == [1, 2, 3, 4]
    assert final_variables(tmp_path / "cut") == final_variables(tmp_path / "unbroken")


def test_micro_batches_are_refused_in_one_line():
    step = step_on(1, "none")
    with pytest.raises(
        UserError, match=r"config.microbatches: the model has batch statistics \(image/bn1/mean\)"
    ) as it:
        Step(step.method, step.optimizer, step.mesh, microbatches=2)
    assert "\n" not in str(it.value)
