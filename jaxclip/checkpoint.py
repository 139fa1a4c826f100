"""Checkpoints: the training state and what is needed to use the model without its config file, through Orbax."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from jaxclip.errors import UserError

_STATE, _MODEL = "state", "model"


class Checkpoints:
    """The checkpoints of one run: saved in the background, committed whole or not at all, the last few kept."""

    def __init__(self, directory: pathlib.Path, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._saving: Any = None

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, model: dict[str, Any]) -> None:
        """Starts saving; returns as soon as the state is copied off the devices.

        Args:
          step: steps done.
          state: a pytree of arrays.
          model: JSON values: the config and the tokenizer.
        """
        if self.latest != step:
            checkpointables = {_STATE: _pack(state), _MODEL: model}
            self.wait()
            self._saving = self._checkpointer.save_checkpointables_async(step, checkpointables, force=True)

    def restore(self, abstract_state: Any) -> Any:
        """The newest state, laid out as `abstract_state` says."""
        loaded = self._checkpointer.load_checkpointables(self.latest, {_STATE: _pack(abstract_state)})
        return _unpack(loaded[_STATE], abstract_state)

    def wait(self) -> None:
        """Waits for the save under way; raises what went wrong in it."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def close(self) -> None:
        """Waits for saves under way."""
        self.wait()
        self._checkpointer.close()


def find(path: pathlib.Path) -> pathlib.Path:
    """The folder of one checkpoint: `path` itself, or the newest in a run's workdir.

    Raises:
      UserError: there is none.
    """
    if (path / _MODEL).is_dir():
        return path
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.glob("*") if child.name.isdigit() and (child / _MODEL).is_dir()]
        if steps:
            return max(steps, key=lambda child: int(child.name))
    raise UserError(f"{path}: no checkpoint here; give a run's workdir or one of the folders in its checkpoints/")


def load_model(path: pathlib.Path) -> dict[str, Any]:
    """The JSON values saved with a checkpoint."""
    return ocp.load_checkpointables(path.absolute(), {_MODEL: None})[_MODEL]


def load_params(path: pathlib.Path, abstract_params: Any) -> Any:
    """The parameters alone, laid out as `abstract_params` says."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load_checkpointables(path.absolute(), {_STATE: {"params": abstract_params}})
    return loaded[_STATE]["params"]


def _pack(state: Any) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}


def _unpack(loaded: dict[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(type(like)(**loaded)))
