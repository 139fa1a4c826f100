"""Checkpoints of the training state, with the config and tokenizer needed to use the model, through Orbax."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from jaxclip import upgrade
from jaxclip.errors import UserError

_STATE, _MODEL = "state", "model"


class Checkpoints:
    """The checkpoints of one run: saved in the background and atomically; the latest few are kept."""

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
          step: the number of completed steps.
          state: a pytree of arrays.
          model: the config and the tokenizer as JSON values.
        """
        if self.latest != step:
            checkpointables = {_STATE: _pack(state), _MODEL: model}
            self.wait()
            self._saving = self._checkpointer.save_checkpointables_async(step, checkpointables, force=True)

    def restore(self, abstract_state: Any) -> Any:
        """The newest state, sharded as in `abstract_state`; version 0.1's checkpoints are supported.

        Raises:
          UserError: the state is that of another model or of another optimizer.
        """
        folder = pathlib.Path(str(self._checkpointer.directory)) / str(self.latest)
        return _unpack(_load_state(folder, _pack(abstract_state)), abstract_state)

    def wait(self) -> None:
        """Waits for a running save, and raises its error if it fails."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def close(self) -> None:
        """Waits for running saves."""
        self.wait()
        self._checkpointer.close()


def find(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of one checkpoint: `path` itself, or the newest in a run's workdir; None if there is none."""
    if _is_complete(path):
        return path
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.glob("*") if child.name.isdigit() and _is_complete(child)]
        if steps:
            return max(steps, key=lambda child: int(child.name))
    return None


def _is_complete(path: pathlib.Path) -> bool:
    return (path / _MODEL).is_dir() and (path / _STATE).is_dir()


def load_model(path: pathlib.Path) -> dict[str, Any]:
    """The JSON values saved with a checkpoint, in this version's form.

    Raises:
      UserError: they cannot be read.
    """
    try:
        return upgrade.model(ocp.load_checkpointables(path.absolute(), {_MODEL: None})[_MODEL])
    except Exception as error:  # Orbax raises many different exceptions for missing or damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is a checkpoint that cannot be read ({reason}); copy all of it again") from error


def load_variables(path: pathlib.Path, params: Any, stats: Any, averaged: bool = False) -> tuple[Any, Any]:
    """Only the parameters and the batch statistics, sharded as the abstract ones.

    Args:
      path: the folder of the checkpoint.
      params, stats: abstract arrays.
      averaged: whether to load the moving average of the parameters.

    Raises:
      UserError: the checkpoint is that of another model.
    """
    name = "average" if averaged else "params"
    loaded = _load_state(path.absolute(), _with_stats({name: params}, stats))
    return loaded[name], loaded.get("stats", {})


def _load_state(path: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Parts of the state in a checkpoint's folder, sharded as the abstract ones."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        metadata = ocp.metadata(path, _STATE).metadata
        stored, wanted = upgrade.paths(metadata), upgrade.paths(abstract)
        if wanted.keys() <= stored.keys():
            return ocp.load_checkpointables(path, {_STATE: abstract})[_STATE]
        found = upgrade.origins(wanted, stored)
        form = upgrade.stored_form(wanted, found, stored)
        parts = {origin.path.partition("/")[0] for origin in found.values()}
        loaded = ocp.load_checkpointables(path, {_STATE: _only(form, {part: metadata[part] for part in parts})})
    return upgrade.this_form(abstract, found, upgrade.paths(loaded[_STATE]))


def _only(form: dict[str, Any], tree: Any) -> Any:
    """The part of a stored tree whose names occur in `form`."""

    def choose(path: tuple, _: Any) -> Any:
        return form.get(jax.tree_util.keystr(path, simple=True, separator="/"), ocp.PLACEHOLDER)

    return jax.tree_util.tree_map_with_path(choose, tree)


def save_variables(path: pathlib.Path, params: Any, stats: Any, model: dict[str, Any], average: Any = None) -> None:
    """Writes a checkpoint without optimizer state: weights, and JSON values as in `Checkpoints.save`."""
    state = _with_stats({"params": params}, stats) | ({"average": average} if average else {})
    ocp.save_checkpointables(path.absolute(), {_STATE: state, _MODEL: model})


def save_best(path: pathlib.Path, state: Any, model: dict[str, Any]) -> None:
    """Writes the best checkpoint so far, without optimizer state, in place of the previous one.

    All processes must call this. If the process is killed, the previous one remains, or both under other names.
    """
    new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    if jax.process_index() == 0:
        shutil.rmtree(new, ignore_errors=True)
    multihost_utils.sync_global_devices("best checkpoint: begin")
    save_variables(new, state.params, state.stats, model, average=state.average)
    if jax.process_index() == 0:
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    multihost_utils.sync_global_devices("best checkpoint: end")


def _pack(state: Any) -> dict[str, Any]:
    """The fields of a state by name, without empty ones, which a checkpoint cannot store."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _with_stats(packed: dict[str, Any], stats: Any) -> dict[str, Any]:
    # Most models have none, and their checkpoints do not contain them.
    return packed | ({"stats": stats} if stats else {})


def _unpack(loaded: dict[str, Any], like: Any) -> Any:
    empty: dict[str, Any] = {field.name: {} for field in dataclasses.fields(like)}
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(type(like)(**empty | dict(loaded))))
