"""Gradient caching: the same results in micro-batches, with less memory."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from commands import environment, losses, recipe, run
from cpu_devices import ACCURATE

from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config, MeshConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.methods import clip
from jaxclip.parsing import parse
from jaxclip.step import Step
from jaxclip.towers.batch_norm import BatchNorm

SIZES = {"width": 32, "layers": 1, "heads": 2}
TINY = {
    "name": "clip",
    "embed_dim": 16,
    "image": {"image_size": 16, "patch_size": 4, "patch_drop": 0.5} | SIZES,
    "text": {"vocab_size": 50, "context_length": 6} | SIZES,
}
# At 8 parts on 8 devices, each has 16 records of a part. With 8 or fewer, XLA's CPU backend multiplies by other code on
# some processors, whose roundings alone put the gradients 1.3e-6 apart.
BATCH = 1024


@functools.cache
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 50, (BATCH, 6), dtype=np.int32),
        "text_end": rng.integers(0, 6, BATCH, dtype=np.int32),
    }


def step_of(devices: int, microbatches: int, method: Any = None, fsdp: int = 2) -> Step:
    method = method or methods.from_config(TINY)
    mesh = sharding.create(MeshConfig(fsdp=min(fsdp, devices)), jax.devices()[:devices])
    sgd = optimizer.create(OptimizerConfig(learning_rate=1e-3), 100)
    return Step(method, sgd, mesh, "float32", microbatches)


@functools.cache
def first_params() -> Any:
    """Disturbed: fresh towers embed all images nearly alike, and their gradients all but cancel."""
    rng = np.random.default_rng(1)
    fresh = step_of(1, 1).init(3).params
    return jax.tree.map(lambda leaf: np.asarray(leaf + 0.1 * rng.standard_normal(leaf.shape), np.float32), fresh)


@functools.cache
def gradients(devices: int, microbatches: int, fsdp: int = 2) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and gradients by every parameter, of the loss that the step trains on."""
    step = step_of(devices, microbatches, fsdp=fsdp)
    params = jax.device_put(first_params(), jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state.params))
    rows = jax.device_put(batch(), sharding.batch_sharding(step.mesh))
    function = jax.jit(jax.value_and_grad(step.loss, has_aux=True), compiler_options=ACCURATE)
    (loss, (metrics, *_)), found = function(params, {}, {}, rows, jax.random.key(5))
    paths = jax.tree_util.tree_leaves_with_path(found)
    return (
        {name: float(value) for name, value in (metrics | {"loss": loss}).items()},
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, float) for path, leaf in paths},
    )


@pytest.mark.parametrize("fsdp", [1, 2])
def test_cached_gradients_equal_uncached_ones(fsdp):
    microbatches, devices = 8, 8
    metrics, found = gradients(devices, microbatches, fsdp)
    expected_metrics, expected = gradients(devices, 1)
    for name, value in expected_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name
    difference = np.sqrt(sum(np.sum((found[name] - expected[name]) ** 2) for name in expected))
    assert difference <= 1e-6 * np.sqrt(sum(np.sum(leaf**2) for leaf in expected.values()))
    # Not k times too large, as it would be if each micro-batch added that of the whole matrix.
    assert found["logit_scale"] == pytest.approx(expected["logit_scale"], rel=1e-6)
    assert abs(expected["logit_scale"]) > 1e-3


def test_gradients_are_summed_over_devices_once_and_not_once_per_part():
    step = step_of(8, 4, fsdp=1)
    text = step.train.lower(step.abstract_state, shapes(step.method.inputs(), 64)).compile().as_text()
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    assert bodies and "all-reduce" in text
    assert not [name for name in bodies if "all-reduce" in computations[name]]


def temporaries(microbatches: int) -> int:
    """Bytes that the compiled step needs beside its arguments and results."""
    step = step_of(1, microbatches)
    compiled = step.train.lower(step.abstract_state, shapes(step.method.inputs(), 1024)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_micro_batches_save_memory():
    assert temporaries(8) < temporaries(1) / 3


def test_validation_goes_through_the_towers_in_parts_too_where_it_can():
    whole, parts = step_of(2, 1), step_of(2, 4)
    params = first_params()
    rows = batch()
    of_parts, of_whole = (float(step.validate(params, {}, rows)["loss"]) for step in (parts, whole))
    assert of_parts == pytest.approx(of_whole)
    # 4 parts do not divide 6 records on 2 devices, 3 do; 5 parts nothing but 5.
    assert [turns(parts, size) for size in (128, 6, 10)] == [4, 3, 1]
    assert turns(whole, 128) == 1


def turns(step: Step, records: int) -> int:
    """In how many parts a validation batch goes through the towers."""
    some = {name: values[:records] for name, values in batch().items()}
    jaxpr = jax.make_jaxpr(step.validate)(first_params(), {}, some)
    return max([equation.params["length"] for equation in scans(jaxpr.jaxpr)], default=1)


def scans(jaxpr) -> list:
    """The loops over parts: those whose body has loops over layers, or layers, inside."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation)
        else:
            found += [scan for inner in jax.core.jaxprs_in_params(equation.params) for scan in scans(inner)]
    return found


class Normalized(clip.CLIP):
    """A CLIP with batch statistics, as a ResNet has them."""

    def __init__(self, method, *, rngs):
        super().__init__(method, rngs=rngs)
        self.norm = BatchNorm(16)

    def encode_image(self, images, ctx):
        embeddings = super().encode_image(images, ctx)
        return self.norm(embeddings[:, None, None], ctx.train)[:, 0, 0]


@dataclasses.dataclass(frozen=True)
class NormalizedMethod(clip.Method):
    def init(self, rngs):
        return Normalized(self, rngs=rngs)


def test_towers_with_batch_statistics_are_refused_by_name():
    known = methods.from_config(TINY)
    method = NormalizedMethod(known.image, known.text, known.embed_dim)
    with pytest.raises(UserError, match=r"config.microbatches: the model has batch statistics \(norm/mean\)"):
        step_of(1, 2, method)


def test_a_batch_that_does_not_divide_into_micro_batches_is_an_error():
    config = parse(
        Config,
        {
            "seed": 0,
            "steps": 1,
            "batch_size": 24,
            "microbatches": 2,
            "data": {"train": "shapes", "train_vocabulary": 300},
            "method": TINY,
            "optimizer": {"learning_rate": 1e-3},
        },
    )
    mesh = sharding.create(MeshConfig(), jax.devices()[:8])
    with pytest.raises(UserError, match="batch_size=24 must be a multiple of the 8 devices x 2 microbatches, such as"):
        sharding.check_divides(config, mesh)
    sharding.check_divides(dataclasses.replace(config, batch_size=48), mesh)


def test_a_run_with_micro_batches_has_the_losses_of_one_without(tmp_path):
    config = f"--config={recipe(tmp_path)}"
    for name, parts in (("whole", 1), ("parts", 4)):
        result = run([config, f"--workdir={tmp_path}/{name}", f"--config.microbatches={parts}"], environment())
        assert result.status == 0, result.stderr
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole.keys() == parts.keys() and len(whole) == 4
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=1e-4), step
    refused = run([config, f"--workdir={tmp_path}/parts", "--config.microbatches=2"], environment())
    assert refused.status == 2 and "config.microbatches is 2 and the run in" in refused.stderr
