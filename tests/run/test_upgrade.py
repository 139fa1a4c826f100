"""Opening of version 0.1's checkpoints and configs, with the new names of arrays and keys."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from jaxclip import checkpoint, methods, optimizer, sharding, upgrade
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.step import Step, TrainState

VIT = {"name": "vit", "image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
RESNET = {"name": "modified_resnet", "image_size": 32, "width": 2, "layers": [1, 1, 1, 1]}
TEXT = {"name": "text", "vocab_size": 50, "context_length": 6, "width": 32, "layers": 1, "heads": 2}
BERT = {"name": "bert", "vocab_size": 50, "context_length": 6, "width": 32, "layers": 3, "heads": 2}

# The keys of the method in version 0.1, and the paths of this version with what was there then.
OLD: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "clip": (
        {"image": VIT | {"projection": True}, "text": TEXT | {"projection_bias": False}},
        {"image_projection/kernel": "image/projection", "text_projection/kernel": "text/projection"},
    ),
    "siglip": (
        {
            "name": "siglip",
            "image": VIT | {"pool": "map", "projection": False},
            "text": TEXT | {"projection_bias": True},
        },
        {"text_projection/kernel": "text/projection", "text_projection/bias": "text/projection_bias"},
    ),
    "modified_resnet": (
        {"image": RESNET, "text": TEXT | {"projection_bias": False}},
        {
            "image_projection/kernel": "image/attention_pool/out_kernel",
            "image_projection/bias": "image/attention_pool/out_bias",
            "text_projection/kernel": "text/projection",
        },
    ),
    "bert": (
        {"image": VIT, "text": BERT},
        {"image_projection/kernel": "image/projection", "text_projection/kernel": "text/projection"},
    ),
}


def old_tree(tree: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """Parameters or statistics of this version in the form of version 0.1."""
    flat = upgrade.paths(tree)
    result: dict[str, Any] = {}
    for path, leaf in flat.items():
        if path.startswith("text/lower/"):
            continue
        if path.startswith("text/upper/"):
            leaf = np.concatenate([flat[path.replace("upper", "lower")], leaf])
            path = path.replace("text/upper/", "text/transformer/")
        *parents, name = renamed.get(path, path).split("/")
        branch = result
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = leaf
    return result


def made_up(step: Step) -> TrainState:
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(7)
        if leaf.dtype == jnp.int32:
            return jnp.int32(5)
        return np.asarray(rng.standard_normal(leaf.shape), leaf.dtype)

    state = jax.tree.map(draw, step.abstract_state)
    return TrainState(**{**vars(state), "rate": jnp.float32(1)})


def step_of(name: str, devices: int = 1) -> Step:
    keys = upgrade.method({"name": "clip", "embed_dim": 32} | OLD[name][0])
    adamw = optimizer.create(OptimizerConfig(learning_rate=1e-3), 100)
    mesh = sharding.create(MeshConfig(fsdp=devices), jax.devices()[:devices])
    return Step(methods.from_config(keys), adamw, mesh, "float32")


def write_old(folder: pathlib.Path, name: str, state: TrainState) -> None:
    """The checkpoint that version 0.1 would have written of a state."""
    renamed = OLD[name][1]
    # As in version 0.1: the moments, and two counts of steps.
    moments: dict[str, dict[str, Any]] = {"mu": {}, "nu": {}}
    for path, leaf in upgrade.paths(state.opt_state).items():
        if match := re.search(r"(?:^|/)(mu|nu)/(.+)$", path):
            moments[match[1]][match[2]] = leaf
    opt_state = [
        {"count": jnp.int32(5), **{kind: old_tree(flat, renamed) for kind, flat in moments.items()}},
        None,
        {"count": jnp.int32(5)},
    ]
    packed = {"step": state.step, "params": old_tree(state.params, renamed), "opt_state": opt_state, "key": state.key}
    if state.stats:
        packed["stats"] = old_tree(state.stats, renamed)
    saved = {"method": {"name": "clip", "embed_dim": 32} | OLD[name][0], "tokenizer": "{}"}
    ocp.save_checkpointables(folder, {"state": packed, "model": saved})


def assert_equal(found: Any, expected: Any) -> None:
    found, expected = upgrade.paths(found), upgrade.paths(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        if path == "key":
            leaf, found[path] = jax.random.key_data(leaf), jax.random.key_data(found[path])
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize("name", OLD)
def test_an_old_state_is_restored_to_the_bit(name, tmp_path):
    step = step_of(name, 2)
    state = made_up(step)
    write_old(tmp_path / "5", name, state)
    checkpoints = checkpoint.Checkpoints(tmp_path, 3)
    restored = checkpoints.restore(step.abstract_state).state
    checkpoints.close()
    assert_equal(restored, state)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(
        lambda leaf: leaf.sharding, step.abstract_state
    )


@pytest.mark.parametrize("name", OLD)
def test_old_weights_are_loaded_with_the_method_they_say(name, tmp_path):
    step = step_of(name)
    state = made_up(step)
    write_old(tmp_path / "5", name, state)
    method = methods.from_config(checkpoint.load_model(tmp_path / "5")["method"])
    assert method == step.method
    abstract = sharding.placed(step.mesh, *methods.abstract_variables(method))
    params, stats = checkpoint.load_variables(tmp_path / "5", *abstract)
    assert_equal(params, state.params)
    assert_equal(stats, state.stats)


def test_a_state_of_another_model_is_refused_by_the_first_array_that_it_lacks(tmp_path):
    write_old(tmp_path / "5", "clip", made_up(step_of("clip")))
    with pytest.raises(UserError, match="the checkpoint has no .*image/map_head/.*; it is of another model"):
        checkpoints = checkpoint.Checkpoints(tmp_path, 3)
        checkpoints.restore(step_of("siglip").abstract_state)


def test_a_config_of_this_version_stays_as_it_is():
    keys = {"name": "clip", "embed_dim": 32, "image": VIT, "text": TEXT, "image_projection": False}
    config = {"method": keys, "optimizer": {"groups": [{"match": "^image/", "rate": 0.0}]}, "init_only": "^image/"}
    assert upgrade.config(config) == config
    assert upgrade.model({"config": config, "tokenizer": "{}"}) == {"config": config, "tokenizer": "{}"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("^image/", "^image"),
        ("^text/", "^text"),
        ("^image/layer", "^image/layer"),
        ("^text/(?!projection)", "^text/(?!projection)"),
        ("projection", "projection"),
        ("^image/(positions|projection)", "^image/(positions|projection)|^image_projection/"),
    ],
)
def test_what_was_frozen_stays_frozen(old, new):
    found = upgrade.config({"optimizer": {"learning_rate": 1.0, "frozen": old}})
    assert found["optimizer"] == {"learning_rate": 1.0, "groups": [{"match": new, "rate": 0.0}]}
    assert upgrade.config({"optimizer": {"frozen": ""}})["optimizer"] == {}
