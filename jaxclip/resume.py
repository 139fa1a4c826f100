"""How a run starts: from its newest checkpoint, from other weights, or afresh; and what may change on the way."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any

import jax

from jaxclip import checkpoint, methods, schedule, upgrade
from jaxclip.config import Config
from jaxclip.errors import UserError
from jaxclip.parsing import flatten, parse, to_dict
from jaxclip.run import Run
from jaxclip.step import TrainState
from jaxclip.weights import init_from

# Keys that may differ when a run goes on: its length, how often it does things, and the data.
MAY_CHANGE = (
    "steps",
    "epochs",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "profile_steps",
)
MAY_CHANGE_UNDER = ("data.train", "data.eval", "data.root", "data.vocabulary", "data.max_skip_rate", "evals")


def initial_state(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[TrainState, str]:
    """The state that a run starts from, and a line that says which.

    1. The newest checkpoint in the workdir.
    2. A fresh state with parameters from `config.init_from`, all or those that `config.init_only` finds.
    3. A fresh state.

    Raises:
      UserError: the checkpoint is past the run's last step, or `init_from` has not what is asked of it.
    """
    if checkpoints.latest is not None:
        state = checkpoints.restore(run.step.abstract_state)
        if int(state.step) > run.steps:
            raise UserError(
                f"{run.workdir} is at step {int(state.step)}, past steps={run.steps}; give more steps or another "
                f"workdir"
            )
        return state, f"continuing from the checkpoint of step {checkpoints.latest} in {run.workdir}"
    state = run.step.init(run.config.seed)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    message = (
        f"{len(run.source):,} records, {count:,} parameters, {run.mesh.size} device(s), {run.steps:,} steps of "
        f"{run.config.batch_size} records, in {run.workdir}"
    )
    if run.config.init_from:
        state, num_taken = init_from.start_from(run.config, run.method, run.mesh, run.tokenizer, state)
        message += f", {num_taken:,} of them from {run.config.init_from}"
    return state, message


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether there is a complete checkpoint to go on from; without one a run starts afresh."""
    return any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))


def saved_tokenizer(workdir: pathlib.Path) -> str | None:
    """The tokenizer.json of a run that goes on; None for one that starts."""
    path = workdir / "tokenizer.json"
    return path.read_text() if has_checkpoint(workdir) and path.exists() else None


def check_resumable(config: Config, workdir: pathlib.Path) -> None:
    """Compares a config with the one that an earlier run left in the workdir.

    Raises:
      UserError: a key differs that a run cannot change on its way.
    """
    path = workdir / "config.json"
    if not path.exists() or not has_checkpoint(workdir):
        return
    written = upgrade.config(json.loads(path.read_text()))
    with contextlib.suppress(UserError):  # a key of another version's
        # Keys that the run did not know yet had what is their default now.
        written = _complete(parse(Config, written))
    before, now = flatten(written), flatten(_complete(config))
    for key in sorted(before.keys() | now.keys()):
        if key in MAY_CHANGE or any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE_UNDER):
            continue
        if before.get(key) != now.get(key):
            raise UserError(
                f"config.{key} is {now.get(key)!r} and the run in {workdir} has {before.get(key)!r}; "
                f"keep it, or give another --workdir"
            )


def _complete(config: Config) -> dict[str, Any]:
    """Every key of a config, those of its method and its schedule too, whether they were given or not."""
    whole = to_dict(config) | {"method": methods.to_config(methods.from_config(config.method))}
    whole["optimizer"]["schedule"] = schedule.to_config(schedule.from_config(config.optimizer.schedule))
    return whole
