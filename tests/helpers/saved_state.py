"""What the newest checkpoint of a run holds."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from jaxclip import checkpoint, methods, optimizer, sharding
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import Config, MeshConfig
from jaxclip.parsing import parse
from jaxclip.step import Step


def final_state(workdir: pathlib.Path) -> dict[str, bytes]:
    """The bytes of every array of the newest checkpoint, by its path."""
    config = parse(Config, checkpoint.load_model(checkpoint.find(workdir))["config"])
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    step = Step(methods.from_config(config.method), optimizer.create(config.optimizer, config.steps), mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    state = checkpoints.restore(step.abstract_state).state
    checkpoints.close()
    state = state.__class__(state.step, state.params, state.stats, state.opt_state, jax.random.key_data(state.key))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
