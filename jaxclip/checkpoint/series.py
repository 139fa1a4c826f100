"""The checkpoints of one run: saved one after the other, the newest whole one restored."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from jaxclip.checkpoint import folder
from jaxclip.checkpoint.folder import Damaged, load_model
from jaxclip.errors import UserError

# What TensorStore and the system say of a disk that is full, read-only or out of quota.
_DISK = ("No space left", "Read-only file system", "File too large", "quota", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      step: of it.
      state: as it was saved.
      values: the JSON values that were saved with it.
      damaged: what is wrong with each newer one, a line each.
    """

    step: int
    state: Any
    values: dict[str, Any]
    damaged: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run: saved in the background and atomically; the latest few are kept.

    Args:
      directory: of the checkpoints; made if it is missing.
      keep: how many.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        self._directory = directory.absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._saving: Any = None
        self._what = ""

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One line if the disk is at fault."""
        try:
            yield
        except Exception as error:
            root, reason = folder.root_of(error)
            at_fault = isinstance(root, OSError) or any(words in reason for words in _DISK)
            if not at_fault or "Out of memory" in reason:
                raise
            saved = [step for step in folder.steps(self._directory) if folder.is_complete(self._directory / str(step))]
            newest = f"the same command goes on from step {saved[0]}" if saved else "nothing is saved yet"
            reason = root.strerror or reason if isinstance(root, OSError) else reason
            raise UserError(
                f"{self._what} cannot be written to {self._directory}: {reason}; make room, {newest}"
            ) from error

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, values: Mapping[str, Any]) -> None:
        """Starts saving; returns as soon as the state is copied off the devices.

        Args:
          step: the number of completed steps.
          state: a dataclass of pytrees of arrays.
          values: the config, the tokenizer and so on as JSON values.
        """
        if self.latest != step:
            content = folder.checkpointables(folder.pack(state), values)
            self.wait()
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(content[folder.STATE]) if hasattr(leaf, "nbytes"))
            self._what = f"checkpoint {step} ({size / 2**20:,.1f} MiB)"
            with self._writing():
                self._saving = self._checkpointer.save_checkpointables_async(step, content, force=True)

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest state that is what was saved, sharded as in `abstract_state`; None if nothing was ever saved.

        Newer checkpoints that are damaged are renamed to STEP.damaged, so that the run's own saves take their places.
        Checkpoints of version 0.1, which have no fingerprints, are supported. All processes must call this.

        Raises:
          UserError: the state is that of another model or of another optimizer, or every checkpoint is damaged.
        """
        damaged: list[tuple[int, str]] = []
        for step in folder.steps(self._directory):
            path = self._directory / str(step)
            restored, reason = None, ""
            try:
                values = load_model(path)
                loaded = folder.load_state(path, folder.pack(abstract_state))
                restored = Restored(step, folder.unpack(loaded, abstract_state), values)
            except Damaged as error:
                reason = error.reason
            if _all_agree(restored is not None):
                self._set_aside([number for number, _ in damaged])
                assert restored is not None
                lines = [
                    f"checkpoint {number} is damaged ({reason}); it is now {number}.damaged"
                    for number, reason in damaged
                ]
                return dataclasses.replace(restored, damaged=tuple(lines))
            damaged.append((step, reason or "another process could not read it"))
        if damaged:
            raise UserError(
                f"{self._directory}: no checkpoint is whole, of {len(damaged)}; the newest, {damaged[0][0]}, is "
                f"damaged: {damaged[0][1]}. Copy them again, or start in another --workdir"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, which neither count as kept ones nor stand in the way of a save then."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                path = self._directory / str(step)
                aside = path.with_name(f"{step}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._checkpointer.reload()

    def wait(self) -> None:
        """Waits for a running save, and raises its error if it fails."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            with self._writing():
                saving.result()

    def raise_if_failed(self) -> None:
        """Raises the error of a save that has failed in the background; does not wait for one that is running."""
        if self._saving is not None and not self._checkpointer.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for running saves."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._writing())
            stack.callback(self._checkpointer.close)
            self.wait()


def newest_values(directory: pathlib.Path) -> dict[str, Any] | None:
    """The JSON values of a run's newest checkpoint in which they are whole; None if there is none."""
    for step in folder.steps(directory):
        with contextlib.suppress(Damaged):
            return load_model(directory / str(step))
    return None


def save_best(path: pathlib.Path, state: Any, values: dict[str, Any]) -> None:
    """Writes the best checkpoint so far, without optimizer state, in place of the previous one.

    All processes must call this. If the process is killed, the previous one remains, or both under other names.
    """
    new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    if jax.process_index() == 0:
        shutil.rmtree(new, ignore_errors=True)
    multihost_utils.sync_global_devices("best checkpoint: begin")
    folder.save_variables(new, state.params, state.stats, values, average=state.average)
    if jax.process_index() == 0:
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    multihost_utils.sync_global_devices("best checkpoint: end")


def _all_agree(succeeded: bool) -> bool:
    """Whether all processes succeeded."""
    if jax.process_count() == 1:
        return succeeded
    return bool(np.all(multihost_utils.process_allgather(np.array(succeeded))))
