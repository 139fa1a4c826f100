"""The training loop: build, restore, step, log, save, evaluate."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxclip import evaluate, optimizer, report, resume, schedule, sharding
from jaxclip.checkpoint import Checkpoints, newest_values, save_best
from jaxclip.config import Config
from jaxclip.history import History
from jaxclip.inputs import shapes
from jaxclip.lock import locked
from jaxclip.monitor import Monitor, Profiler
from jaxclip.parsing import to_dict
from jaxclip.progress import phase
from jaxclip.report.gallery import gallery
from jaxclip.run import Run, build
from jaxclip.stopping import Signals, Stopped, interruptible
from jaxclip.watch import NotFinite, Watch, check_finite

_SAVED = "everything is saved, the same command goes on"
# How often a run goes back from where it stood before it counts as broken for good.
_REWINDS = 3


def train(
    config: Config, workdir: pathlib.Path, *, allow_change: Sequence[str] = (), signals: Signals | None = None
) -> None:
    """Trains, from the newest whole checkpoint in `workdir` if there is one.

    Args:
      config: of the run.
      workdir: of the run; made if it is missing.
      allow_change: keys of the config that may differ from those that the run had so far.
      signals: what the process is told by signals; None if it does not handle any.

    Raises:
      UserError: an error in the config or the data that the user can correct.
      Stopped: after SIGTERM, SIGHUP or Ctrl-C, when everything is saved.
      NotFinite: the loss, a gradient or the state is not finite; nothing of that is saved.
    """
    signals = signals or Signals()
    is_main = jax.process_index() == 0
    with locked(workdir) if is_main else contextlib.nullcontext("") as taken_over:
        saved = newest_values(workdir / "checkpoints") or {}
        changes = resume.changes(config, saved.get("config"), workdir, allow_change)
        with phase("building the model and opening the data", enabled=is_main):
            run = build(config, workdir, saved.get("tokenizer"))
        with contextlib.closing(Checkpoints(workdir / "checkpoints", config.keep_checkpoints)) as checkpoints:
            with phase("reading the checkpoint", enabled=is_main):
                start = resume.start(run, checkpoints)
            if is_main:
                run.write_config()
            with (
                contextlib.closing(Monitor(workdir, int(start.state.step), run.steps, is_main)) as monitor,
                contextlib.closing(Profiler(workdir / "profile", config.profile_steps)) as profiler,
            ):
                length = length_note(run, saved.get("config"), int(start.state.step))
                warmup = schedule.warmup_note(config.optimizer, run.steps)
                notes = (*start.notes, *run.notes, taken_over, warmup, length)
                for line in (start.message, *filter(None, notes)):
                    monitor.say(line)
                trainer = _Trainer(run, start, changes, checkpoints, monitor, signals)
                trainer.run_to_the_end(profiler)


def length_note(run: Run, saved: Mapping[str, Any] | None, step: int) -> str:
    """What another length does to the learning rate of a run that goes on; empty if it has not changed."""
    if not saved or not step:
        return ""
    before = saved["steps"] or math.ceil(saved["epochs"] * len(run.source) / saved["batch_size"])
    if before == run.steps:
        return ""
    was, now = (
        optimizer.rates(run.config.optimizer, steps, at)["learning_rate"]
        for steps, at in ((before, step - 1), (run.steps, step))
    )
    line = f"steps {before:,} → {run.steps:,}: the learning rate follows the new length, {was:.2g} → {now:.2g}"
    if not 0 < was < now:
        return line
    keys = [f"learning_rate={was:.3g}", "warmup_steps=0"]
    if set(run.config.optimizer.schedule) <= {"name"}:
        flags = " ".join(f"--config.optimizer.{key}" for key in ["schedule.name=constant", *keys])
        return f"{line}; to stay at {was:.2g} instead: {flags} --allow_change=optimizer"
    # A flag does not remove the schedule's other keys.
    lines = ", ".join(f"config.optimizer.{key}" for key in ["schedule={'name': 'constant'}", *keys])
    return f"{line}; to stay at {was:.2g} instead, write into the recipe {lines}, and give --allow_change=optimizer"


class _Trainer:
    """A run in progress: its parts, and the current training state."""

    def __init__(
        self,
        run: Run,
        start: resume.Start,
        changes: Sequence[Mapping[str, Any]],
        checkpoints: Checkpoints,
        monitor: Monitor,
        signals: Signals,
    ):
        self.run, self.config = run, run.config
        self.checkpoints, self.monitor, self.signals = checkpoints, monitor, signals
        self.watch = Watch()
        kind = schedule.from_config(run.config.optimizer.schedule)
        self.plateau = kind if isinstance(kind, schedule.Plateau) else None
        self._begin(start)
        for change in changes:
            event = {"step": self.start, "event": "change", **change}
            if change["key"] == "batch_size":
                event["batches"] = resume.resized(self.events, self.start, change["before"], change["after"])
            self.events.append(event)
            monitor.say(f"from step {self.start} on: config.{change['key']} {change['before']} → {change['after']}")

    def _begin(self, start: resume.Start) -> None:
        """Takes a state to go on from."""
        self.state, self.start, self.end = start.state, int(start.state.step), self.run.steps
        self.events, self.row = list(start.events), dict(start.row)
        self.plateau_history = self._history(self.plateau.metric if self.plateau else "")
        self.best_history = self._history(self.config.keep_best)
        if self.start:
            self._follow_plateau(self.start)

    def _history(self, metric: str) -> History | None:
        return History(metric, self.run.workdir, self.start) if metric else None

    def run_to_the_end(self, profiler: Profiler) -> None:
        """Runs the steps, going back where the recipe asks for it, then the final evaluation and the report."""
        with self.signals.at_once(_SAVED):
            if self.start < self.end:
                with self.monitor.paused("compiling the step (kept for the next start)"):
                    self.step = interruptible(self._compiled)
            interruptible(self._make_up_for, self.start)
        while True:
            try:
                self._loop(profiler)
                break
            except NotFinite as error:
                self._rewind(error)
        self.finish()

    def _compiled(self) -> Any:
        """The step, compiled ahead of the first batch."""
        rows = sharding.batch_sharding(self.run.mesh)
        arrays = shapes(self.run.method.inputs(), self.config.batch_size)
        batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows) for name, a in arrays.items()}
        return self.run.step.train.lower(self.run.step.abstract_state, batch).compile()

    def _loop(self, profiler: Profiler) -> None:
        """Runs the steps from `start` to the end, at most two in flight; metrics are checked before the next save."""
        run, config = self.run, self.config
        in_flight: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        batches = self._batches()
        with self.signals.deferred():
            for step in range(self.start + 1, run.steps + 1):
                if step > self.end:
                    break
                batch = self._next(batches)
                if batch is None:
                    self._settle(in_flight)
                    self._stop(step - 1)
                profiler.before(step, self.state)
                self.state, metrics = self.step(self.state, batch)
                in_flight.append((step, metrics))
                self.checkpoints.raise_if_failed()
                last = step == run.steps
                evaluating = last or _due(step, config.eval_every)
                saving = last or _due(step, config.checkpoint_every)
                stopping = self._asked_to_stop(step)
                drain = evaluating or saving or stopping
                if not drain and len(in_flight) < 2:
                    continue
                row = self._settle(in_flight, leave=0 if drain else 1)
                if saving:
                    self._save(step, row)
                if stopping and not last:
                    self._stop(step, row)
                if last:
                    self.row = row
                if evaluating:
                    self._measure(step, row, saved=saving)
                    if self.end == step and not saving:
                        self._save(step, row)

    def _next(self, batches: Iterator[dict[str, jax.Array]]) -> dict[str, jax.Array] | None:
        """The next batch; None if a signal came while it was waited for."""
        try:
            with self.signals.at_once(""), self.monitor.waiting_for_data():
                return next(batches)
        except Stopped:
            return None

    def _asked_to_stop(self, step: int) -> bool:
        # With several processes, jax.distributed handles SIGTERM and tells all of them at which step to stop.
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signals.asked

    def _stop(self, step: int, row: Mapping[str, float] | None = None) -> None:
        """Saves a step, unless it is saved, and raises Stopped."""
        if step:
            self._save(step, row or {})
            self.checkpoints.wait()
            self.signals.hint = _SAVED
        raise self.signals.stopped(f"after step {step}")

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        over_devices = sharding.batch_sharding(self.run.mesh)
        first = resume.first_batch(self.events, self.start)
        for batch in self.run.loader.batches(first, first + self.run.steps - self.start):
            yield {name: jax.make_array_from_process_local_data(over_devices, rows) for name, rows in batch.items()}

    def _settle(self, in_flight: collections.deque[tuple[int, Mapping[str, jax.Array]]], leave: int = 0) -> dict:
        """Waits for steps, checks and counts them, and logs those that are due.

        Returns:
          The row of the last one, empty if it is not due. It is not written yet if an evaluation is to complete it.
        """
        config = self.config
        ready = [in_flight.popleft() for _ in range(len(in_flight) - leave)]
        if not ready:  # A stop before the first step.
            return {}
        settled = []
        for step, metrics in ready:
            figures = {name: float(value) for name, value in metrics.items()}
            check_finite(step, figures)
            settled.append((step, figures))
            for line in self.watch.look(step, figures):
                self.monitor.say(line)
        self.monitor.settled(len(settled), len(settled) * config.batch_size)
        # Steps that end together share one interval of time.
        rates = None
        row: dict[str, float] = {}
        for step, figures in settled:
            newest = not leave and step == settled[-1][0]
            evaluating = newest and (step == self.run.steps or _due(step, config.eval_every))
            if not (_due(step, config.log_every) or evaluating):
                continue
            del figures["finite"]
            figures |= optimizer.rates(config.optimizer, self.run.steps, step - 1, float(self.state.rate))
            figures["skipped"] = self.run.loader.skips.total
            rates = self.monitor.rates() if rates is None else rates
            figures |= rates
            self.monitor.show(step, figures)
            if not evaluating:
                self.monitor.write(step, figures)
            row = figures if step == settled[-1][0] else {}
        return row

    def _save(self, step: int, row: Mapping[str, float]) -> None:
        """Saves the state, and with it the row of its step, which may not be written yet or be lost."""
        with self.monitor.paused(f"saving step {step}"):
            self.checkpoints.save(step, self.state, self._values(row))
        if self.run.is_main and self.monitor.recover():
            self.run.write_config()
            self.monitor.say(f"{self.run.workdir} was removed while the run went on: its files are written again")

    def _values(self, row: Mapping[str, float]) -> dict[str, Any]:
        """The content of a checkpoint besides the state."""
        tokenizer = self.run.tokenizer
        values: dict[str, Any] = {"config": to_dict(self.config), "events": self.events, "row": dict(row)}
        return values | ({} if tokenizer is None else {"tokenizer": tokenizer.to_json()})

    def _measure(self, step: int, row: Mapping[str, float], saved: bool) -> None:
        """Validates and evaluates a step. If that fails or is stopped, the step is saved first."""
        if step == self.run.steps:
            return  # `finish` does it.
        try:
            with self.signals.at_once(_SAVED):
                interruptible(self._evaluate, step, row)
        except BaseException:
            if not saved:
                self._save(step, row)
            self.checkpoints.wait()
            raise

    def _make_up_for(self, step: int) -> None:
        """What was still to do for a saved step when the run ended: its row, evaluation and best checkpoint."""
        if self.row and step < self.run.steps and not _due(step, self.config.eval_every):
            if not self.monitor.has(step):
                self.monitor.write(step, self.row)
        elif step and step < self.run.steps and _due(step, self.config.eval_every):
            done = all((self._evals(step) / f"{evaluation.name}.json").exists() for evaluation in self.run.evaluations)
            if not done or not self.monitor.has(step):
                self._evaluate(step, self.row)
        if step and self.best_history is not None and self.best_history.best_step == step:
            # It ended between writing the value and saving the checkpoint, perhaps.
            self._save_best()

    def _evals(self, step: int) -> pathlib.Path:
        return self.run.workdir / "evals" / str(step)

    def _evaluate(self, step: int, row: Mapping[str, float]) -> None:
        """Validation, which completes the step's row, and evaluations."""
        run = self.run
        figures = dict(row)
        if run.validation:
            with self.monitor.paused(f"validating step {step}"):
                figures |= run.validation(run.step, self.state)
            self.monitor.say(f"step {step}: validation loss {figures['validation_loss']:.4f}")
        if row and not self.monitor.has(step):
            self.monitor.write(step, figures)
        measured: dict[str, float | None] = dict(figures)
        names = {"model": f"{self.config.method['name']}", "pretrained": f"{run.workdir.name}@{step}"}
        variables = self.state.variables
        encoder = evaluate.SharedEncoder(run.encoder, variables, evaluate.needed(run.evaluations))
        for evaluation in run.evaluations:
            with self.monitor.paused(f"evaluating step {step}: {evaluation.name}"):
                place = self._evals(step) / f"{evaluation.name}.json"
                result = evaluate.run(evaluation, encoder, variables, place, names)
            self.monitor.say(f"step {step}: {evaluate.summary(result)}")
            self.monitor.write_evaluations(step, [result])
            measured |= {f"{result['dataset']}/{name}": value for name, value in result["metrics"].items()}
        if self.plateau_history is not None:
            self.plateau_history.add(step, measured)
            self._follow_plateau(step)
        if self.best_history is not None and self.best_history.add(step, measured):
            self._save_best()

    def _save_best(self) -> None:
        save_best(self.run.workdir / "best", self.state, self._values({}))

    def finish(self) -> None:
        """Runs the final evaluation and writes the report; the state is already saved."""
        run = self.run
        self.checkpoints.wait()
        if self.start == run.steps:
            self.monitor.say(f"all {run.steps} steps are done already")
        elif self.end < run.steps:
            self.monitor.say(
                f"stopped early after step {self.end}: config.optimizer.schedule.stop evaluations in a row"
            )
        with self.signals.at_once("the final evaluation is not finished, the same command goes on with it"):
            interruptible(self._finish)

    def _finish(self) -> None:
        run = self.run
        if self.end == run.steps:
            self._evaluate(self.end, self.row)
        with self.monitor.paused("writing the report"):
            images = gallery(run.encoder, self.state.variables, run.validation.source) if run.validation else None
            page = report.write(run.workdir, images, run.method.charts) if run.is_main else None
        evaluated = (evaluation.skips for evaluation in run.evaluations)
        for log in (run.loader.skips, run.validation and run.validation.skips, *evaluated):
            if log and log.total:
                self.monitor.say(f"skipped {log.total:,} records: {log}")
        if page:
            self.monitor.say(f"report: {page.absolute()}")

    def _rewind(self, error: NotFinite) -> None:
        """Goes back to the newest checkpoint and past the batches that broke the run, or raises the error again."""
        last = self.checkpoints.latest
        where = "the start" if last is None else f"step {last}"
        tries = sum(event["event"] == "rewind" and event["to"] == (last or 0) for event in self.events)
        if self.config.on_nonfinite == "stop" or tries == _REWINDS:
            again = f" for the {tries + 1}th time since {where}" if tries else ""
            raise NotFinite(
                error.step,
                error.name,
                f"{error.value}{again}; nothing after {where} is saved. The same command goes on from there with a "
                f"lower rate (--config.optimizer.learning_rate=RATE --allow_change=optimizer.learning_rate), with "
                f"clipping (--config.optimizer.clip_norm=1.0 --allow_change=optimizer.clip_norm), or past the data of "
                f"these steps (--config.on_nonfinite=rewind); python -m jaxclip.checkpoint prune goes back further",
            ) from error
        self.checkpoints.wait()
        events = self.events
        start = resume.start(self.run, self.checkpoints)
        to = int(start.state.step)
        passed = resume.first_batch(events, error.step) - to
        event = {"step": error.step, "event": "rewind", "to": to, "reason": str(error), "batches": passed}
        self.monitor.say(f"{error}; going on from {where}, without the {error.step - to} batches since")
        self.monitor.restart(to)
        self._begin(start)
        self.events = [*events, event]
        self.watch = Watch()

    def _follow_plateau(self, step: int) -> None:
        """Sets the factor on the updates, and ends the run if the metric has not improved for too long."""
        if self.plateau is None or self.plateau_history is None:
            return
        rate, stop = schedule.plateau(
            self.plateau_history.values,
            patience=self.plateau.patience,
            factor=self.plateau.factor,
            stop=self.plateau.stop,
        )
        placed = jax.device_put(np.float32(rate), self.run.step.abstract_state.rate.sharding)
        self.state = dataclasses.replace(self.state, rate=placed)
        self.end = step if stop else self.end


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
