"""Runs that start from given weights, and what they begin with."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from jaxclip import methods, sharding
from jaxclip.config import Config, MeshConfig
from jaxclip.data.tokenizers.clip import END, START, SYMBOLS, ClipTokenizer
from jaxclip.parsing import parse
from jaxclip.step import TrainState
from jaxclip.weights import export, tensor_map
from jaxclip.weights.init_from import start_from

TOKENIZER = ClipTokenizer({token: i for i, token in enumerate([*SYMBOLS, START, END])}, [])
# In a bare file, the number of a text tower's heads follows from its width if they are 64 wide.
TEXT = {"vocab_size": len(SYMBOLS) + 2, "context_length": 8, "width": 64, "layers": 2, "heads": 1}
IMAGE = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
CLIP = {"name": "clip", "embed_dim": 16, "image": IMAGE, "text": TEXT}


@functools.cache
def mesh() -> Any:
    return sharding.create(MeshConfig(fsdp=2), jax.devices()[:4])


def variables(keys: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """Random parameters and batch statistics of a method's config."""
    rng = np.random.default_rng(seed)
    abstract = sharding.placed(mesh(), *methods.abstract_variables(methods.from_config(keys)))
    return jax.tree.map(
        lambda leaf: jax.device_put(rng.standard_normal(leaf.shape).astype(np.float32), leaf.sharding), abstract
    )


def source(folder: pathlib.Path, form: str, keys: dict[str, Any] = CLIP) -> tuple[str, dict[str, np.ndarray]]:
    """Writes a model of random numbers; its path, and its arrays by path."""
    params, stats = variables(keys, 1)
    target = "openclip" if form == "bare" else form
    export.save(folder / "source", target, methods.from_config(keys), TOKENIZER, params, stats)
    path = folder / "source"
    if form == "bare":
        path = (path / "open_clip_model.safetensors").rename(folder / "bare.safetensors")
    return str(path), arrays(params) | arrays(stats)


def arrays(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tensor_map.flat(tree).items()}


def started(
    init_from: str, keys: dict[str, Any] = CLIP, init_only: str = "", tokenizer: Any = TOKENIZER, clean: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """What a run with this recipe begins with, what it would begin with without a source, and how much was taken."""
    config = parse(
        Config,
        {
            "seed": 0,
            "steps": 1,
            "batch_size": 8,
            "data": {"train": "shapes", "train_vocabulary": 300, "clean": clean},
            "method": keys,
            "optimizer": {"learning_rate": 1e-3},
            "init_from": init_from,
            "init_only": init_only,
        },
    )
    fresh = TrainState(np.int32(0), *variables(keys, 2), (), jax.random.key(0))
    state, taken = start_from(config, methods.from_config(keys), mesh(), tokenizer, fresh)
    for found, expected in zip(*map(jax.tree.leaves, (state, fresh)), strict=True):
        assert not isinstance(expected, jax.Array) or found.sharding == expected.sharding
    # Each array has a buffer of its own, since a step donates them all.
    leaves = [leaf for leaf in jax.tree.leaves((state.params, state.stats)) if isinstance(leaf, jax.Array)]
    assert len({leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    assert (state.step, state.opt_state, state.key) == (fresh.step, fresh.opt_state, fresh.key)
    return arrays(state.params) | arrays(state.stats), arrays(fresh.params) | arrays(fresh.stats), taken


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], *but: str) -> None:
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        if path not in but:
            np.testing.assert_array_equal(found[path], values, err_msg=path)


def changed(**keys: Any) -> dict[str, Any]:
    """The recipe with other keys, such as image__width=8."""
    result = CLIP | {part: dict(CLIP[part]) for part in ("image", "text")}
    for key, value in keys.items():
        part, _, name = key.partition("__")
        if name:
            result[part] = result.get(part, {}) | {name: value}
        else:
            result[part] = value
    return result
