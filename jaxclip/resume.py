"""How a run starts: from its newest whole checkpoint, from other weights, or afresh; and what may change on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxclip import checkpoint, methods, schedule
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
    "on_nonfinite",
    "profile_steps",
)
MAY_CHANGE_UNDER = ("data.train", "data.eval", "data.root", "data.vocabulary", "data.max_skip_rate", "evals")
# What --allow_change cannot make possible: another model has another state.
MUST_STAY = ("method", "seed")


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts with.

    Attributes:
      state: the state.
      message: a line that says where it comes from.
      notes: further lines, such as on damaged checkpoints.
      events: what has happened to the run: changes of its config, steps that were gone back.
      row: the metrics of the state's last step, if it is to be logged; empty otherwise.
    """

    state: TrainState
    message: str
    notes: tuple[str, ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    row: Mapping[str, float] = dataclasses.field(default_factory=dict)


def start(run: Run, checkpoints: checkpoint.Checkpoints) -> Start:
    """What a run starts with.

    1. The newest checkpoint in the workdir that is whole.
    2. A fresh state with parameters from `config.init_from`, all or those that `config.init_only` finds.
    3. A fresh state.

    Raises:
      UserError: there are checkpoints and none is whole, the newest is past the run's last step, or `init_from` has not
        what is asked of it.
    """
    restored = checkpoints.restore(run.step.abstract_state)
    if restored is not None:
        if restored.step > run.steps:
            raise UserError(
                f"{run.workdir} is at step {restored.step}, past steps={run.steps}; give more steps or another workdir"
            )
        return Start(
            restored.state,
            f"continuing from the checkpoint of step {restored.step} in {run.workdir}",
            restored.damaged,
            tuple(restored.values.get("events", ())),
            restored.values.get("row", {}),
        )
    state = run.step.init(run.config.seed)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    message = (
        f"{len(run.source):,} records, {count:,} parameters, {run.mesh.size} device(s), {run.steps:,} steps of "
        f"{run.config.batch_size} records, in {run.workdir}"
    )
    if run.config.init_from:
        state, num_taken = init_from.start_from(run.config, run.method, run.mesh, run.tokenizer, state)
        message += f", {num_taken:,} of them from {run.config.init_from}"
    return Start(state, message)


def changes(
    config: Config, saved: Mapping[str, Any] | None, workdir: pathlib.Path, allowed: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What a run that goes on changes of its config, besides its length, its intervals and its data.

    Args:
      config: as it goes on.
      saved: the config in its newest checkpoint; None for a run that starts.
      workdir: of the run.
      allowed: keys that may change besides, such as optimizer.learning_rate.

    Returns:
      Entries for the run's events: `key`, `before` and `after`.

    Raises:
      UserError: another key differs, or an allowed one is none or cannot change.
    """
    for key in allowed:
        if _under(key, MUST_STAY):
            raise UserError(f"--allow_change={key}: a run cannot change it on its way; give another --workdir")
        if key not in flatten(_complete(config)) and not any(
            name.startswith(f"{key}.") for name in flatten(_complete(config))
        ):
            raise UserError(f"--allow_change={key}: the config has no such key; write it as optimizer.learning_rate")
    if saved is None:
        return []
    written = dict(saved)
    with contextlib.suppress(UserError):  # a key of another version's
        # Keys that the run did not know yet had what is their default now.
        written = _complete(parse(Config, written))
    before, now = flatten(written), flatten(_complete(config))
    changed = []
    for key in sorted(before.keys() | now.keys()):
        if key in MAY_CHANGE or _under(key, MAY_CHANGE_UNDER) or before.get(key) == now.get(key):
            continue
        if not _under(key, allowed):
            can = "" if _under(key, MUST_STAY) else f", allow it by --allow_change={key}"
            raise UserError(
                f"config.{key} is {now.get(key)!r} and the run in {workdir} has {before.get(key)!r}; "
                f"keep it{can}, or give another --workdir"
            )
        changed.append({"key": key, "before": before.get(key), "after": now.get(key)})
    return changed


def first_batch(events: Sequence[Mapping[str, Any]], step: int) -> int:
    """The number of the batch that follows a step: the step's own, unless batches were passed over."""
    return step + next((event["batches"] for event in reversed(events) if "batches" in event), 0)


def resized(events: Sequence[Mapping[str, Any]], step: int, before: int, after: int) -> int:
    """How many batches to pass over so that records are neither seen again nor left out when the batch size changes.

    Args:
      events: so far.
      step: that the run goes on from.
      before, after: the batch sizes. If the records seen are no whole number of the new batches, a part of one is left
        out.
    """
    return math.ceil(first_batch(events, step) * before / after) - step


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _complete(config: Config) -> dict[str, Any]:
    """Every key of a config, those of its method and its schedule too, whether they were given or not."""
    whole = to_dict(config) | {"method": methods.to_config(methods.from_config(config.method))}
    whole["optimizer"]["schedule"] = schedule.to_config(schedule.from_config(config.optimizer.schedule))
    return whole
