"""The training loop: build, restore, step, log, save, evaluate."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxclip import evaluate, optimizer, report, resume, schedule, sharding
from jaxclip.checkpoint import Checkpoints, save_best
from jaxclip.config import Config
from jaxclip.evaluate.validation import validation_metrics
from jaxclip.history import History
from jaxclip.monitor import Monitor, Profiler
from jaxclip.parsing import to_dict
from jaxclip.report.gallery import gallery
from jaxclip.run import Run, build
from jaxclip.step import TrainState


class Preempted(Exception):
    """The run received a signal to stop, and everything is saved."""


class NotFinite(Exception):
    """The loss or a gradient is infinite or not a number."""


def train(config: Config, workdir: pathlib.Path) -> None:
    """Trains, from the newest checkpoint in `workdir` if there is one.

    Raises:
      UserError: an error in the config or the data that the user can correct.
      Preempted: after SIGTERM, when everything is saved.
      NotFinite: the loss or a gradient is not finite; nothing of that step is saved.
    """
    resume.check_resumable(config, workdir)
    run = build(config, workdir, resume.saved_tokenizer(workdir))
    with contextlib.closing(Checkpoints(workdir / "checkpoints", config.keep_checkpoints)) as checkpoints:
        state, message = resume.initial_state(run, checkpoints)
        if run.is_main:
            run.write_config()
        start = int(state.step)
        with (
            contextlib.closing(Monitor(workdir, start, run.steps, run.is_main)) as monitor,
            contextlib.closing(Profiler(workdir / "profile", config.profile_steps)) as profiler,
        ):
            monitor.say(message)
            if note := schedule.warmup_note(config.optimizer, run.steps):
                monitor.say(note)
            trainer = _Trainer(run, state, checkpoints, monitor)
            trainer.loop(profiler)
            trainer.finish()


class _Trainer:
    """A run in progress: its parts, and the current training state."""

    def __init__(self, run: Run, state: TrainState, checkpoints: Checkpoints, monitor: Monitor):
        self.run, self.config = run, run.config
        self.state, self.start, self.end = state, int(state.step), run.steps
        self.checkpoints, self.monitor = checkpoints, monitor
        kind = schedule.from_config(run.config.optimizer.schedule)
        self.plateau = kind if isinstance(kind, schedule.Plateau) else None
        self.plateau_history = History(self.plateau.metric, run.workdir, self.start) if self.plateau else None
        best = run.config.keep_best
        self.best_history = History(best, run.workdir, self.start) if best else None
        if self.start:
            self._follow_plateau(self.start)

    def loop(self, profiler: Profiler) -> None:
        """Runs the steps from `start` to the end, at most two in flight; metrics are checked before the next save."""
        run, config = self.run, self.config
        in_flight: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        batches = self._batches()
        with _StopSignal() as stop:
            for step in range(self.start + 1, run.steps + 1):
                if step > self.end:
                    break
                with self.monitor.waiting_for_data(config.batch_size):
                    batch = next(batches)
                profiler.before(step, self.state)
                self.state, metrics = run.step.train(self.state, batch)
                in_flight.append((step, metrics))
                last = step == run.steps
                evaluating = last or _due(step, config.eval_every)
                saving = last or _due(step, config.checkpoint_every)
                stopping = stop.asked(step)
                while len(in_flight) > (0 if evaluating or saving or stopping else 1):
                    self._settle(*in_flight.popleft(), evaluating=evaluating)
                if saving or stopping:
                    self._save(step)
                if evaluating and not last:
                    self._evaluate(step)
                if self.end == step and not (saving or stopping):
                    self._save(step)
                if stopping and step < self.end:
                    self.checkpoints.wait()
                    raise Preempted(
                        f"stopped by SIGTERM after step {step}; everything is saved, the same command goes on"
                    )

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
        with _stopping_at_once():
            for result in self._evaluate(self.end):
                self.monitor.say(evaluate.summary(result))
            images = gallery(run.encoder, self.state.variables, run.eval_source) if run.eval_source else None
            evaluated = (evaluation.skips for evaluation in run.evaluations)
            for log in (run.loader.skips, run.validation_skips, *evaluated):
                if log.total:
                    self.monitor.say(f"skipped {log.total:,} records: {log}")
            if run.is_main:
                page = report.write(run.workdir, images, run.method.charts)
                self.monitor.say(f"report: {page.absolute()}")

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        over_devices = sharding.batch_sharding(self.run.mesh)
        for batch in self.run.loader.batches(self.start, self.run.steps):
            yield {name: jax.make_array_from_process_local_data(over_devices, rows) for name, rows in batch.items()}

    def _settle(self, step: int, metrics: Mapping[str, jax.Array], evaluating: bool) -> None:
        """Waits for a step's metrics, stops the run if one is not finite, and logs them if they are due."""
        run, config = self.run, self.config
        figures = {name: float(value) for name, value in metrics.items()}
        self._check_finite(step, figures)
        self.monitor.step()
        # Of the steps in flight, only the newest is evaluated.
        evaluating = step == run.steps or (evaluating and _due(step, config.eval_every))
        if not (_due(step, config.log_every) or evaluating):
            return
        figures |= optimizer.rates(config.optimizer, run.steps, step - 1, float(self.state.rate))
        figures["skipped"] = run.loader.skips.total
        figures |= self.monitor.show(step, figures)
        if evaluating and run.eval_source:
            with self.monitor.paused():
                figures |= validation_metrics(
                    run.step, self.state, run.eval_source, run.views, config.batch_size, run.validation_skips
                )
            self._measured(step, figures)
        self.monitor.write(step, figures)

    def _check_finite(self, step: int, figures: Mapping[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(figures[name]):
                last = self.checkpoints.latest
                raise NotFinite(
                    f"step {step}: {name} is {figures[name]}; stopped, and nothing after "
                    f"{'the start' if last is None else f'step {last}'} is saved. A lower optimizer.learning_rate or "
                    f"optimizer.clip_norm=1.0 is what usually helps"
                )

    def _save(self, step: int) -> None:
        with self.monitor.paused():
            self.checkpoints.save(step, self.state, self._model_values())

    def _model_values(self) -> dict[str, Any]:
        """The content of a checkpoint besides the state: the config and tokenizer needed to use the model."""
        tokenizer = self.run.tokenizer
        return {"config": to_dict(self.config)} | ({} if tokenizer is None else {"tokenizer": tokenizer.to_json()})

    def _evaluate(self, step: int) -> list[dict[str, Any]]:
        run = self.run
        with self.monitor.paused():
            folder = run.workdir / "evals" / str(step)
            names = {"model": f"{self.config.method['name']}", "pretrained": f"{run.workdir.name}@{step}"}
            results = evaluate.run_all(run.evaluations, run.encoder, self.state.variables, folder, names)
            self.monitor.write_evaluations(step, results)
            measured = {f"{result['dataset']}/{name}": v for result in results for name, v in result["metrics"].items()}
            self._measured(step, measured)
            return results

    def _measured(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Updates a plateau schedule and the best checkpoint after an evaluation."""
        if self.plateau_history is not None:
            self.plateau_history.add(step, metrics)
            self._follow_plateau(step)
        if self.best_history is not None and self.best_history.add(step, metrics):
            save_best(self.run.workdir / "best", self.state, self._model_values())

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


class _StopSignal:
    """Whether SIGTERM was received, synchronized among all processes so that they save the same step."""

    def __enter__(self) -> _StopSignal:
        self._several = jax.process_count() > 1
        self._received = threading.Event()
        self._before: Any = None
        # With several processes, jax.distributed handles SIGTERM and tells all of them at which step to stop.
        if not self._several and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._received.set())
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self, step: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._received.is_set()


@contextlib.contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Raises Preempted on SIGTERM at once: the state is already saved, and the next start evaluates again."""

    def stop(*_: object) -> None:
        raise Preempted("stopped by SIGTERM during the final evaluation; all steps are saved, the same command goes on")

    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
