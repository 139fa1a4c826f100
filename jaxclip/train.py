"""The training loop: build, restore, step, log, save, evaluate."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxclip import checkpoint, evaluate, methods, optimizer, report, sharding
from jaxclip.config import Config, flatten, parse, to_dict
from jaxclip.data import findings, loader, mixture, skips, sources, storage, tokenizers
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.gallery import gallery
from jaxclip.evaluate.validation import validation_loss
from jaxclip.io import atomic_write
from jaxclip.monitor import MetricLog, Progress, Throughput
from jaxclip.step import Step, TrainState
from jaxclip.weights import init_from

# Keys that may differ when a run goes on: its length, how often it does things, and the data.
MAY_CHANGE = ("steps", "epochs", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "profile_steps")
MAY_CHANGE_UNDER = ("data.train", "data.eval", "data.root", "data.vocabulary", "data.max_skip_rate", "evals")


class Preempted(Exception):
    """The run was told to stop and has saved everything."""


class NotFinite(Exception):
    """The loss or a gradient is infinite or not a number."""


def train(config: Config, workdir: pathlib.Path) -> None:
    """Trains, from the newest checkpoint in `workdir` where there is one.

    Raises:
      UserError: something in the config or the data that a person can mend.
      Preempted: after SIGTERM, when everything is saved.
      NotFinite: the loss or a gradient is not finite; nothing of that step is saved.
    """
    run = _Run(config, workdir)
    try:
        run.loop()
        run.finish()
    finally:
        run.close()


class _Run:
    """A run's parts, built in the order in which mistakes are cheapest to find."""

    def __init__(self, config: Config, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.main = jax.process_index() == 0
        self.method = methods.from_config(config.method)
        if config.init_only and not config.init_from:
            raise UserError("config.init_only: nothing says from where; give config.init_from=WEIGHTS")
        self.mesh = sharding.create(config.mesh)
        sharding.check_divides(config, self.mesh)
        check_resumable(config, workdir)
        self.source = sources.open_source(config.data.train, root=config.data.root)
        findings.preflight(self.source, "data.train", config.data.max_pixels, config.data.max_skip_rate)
        self.evaluations = [
            evaluate.Evaluation(name, item, config.data.root) for name, item in config.evaluations().items()
        ]
        self.eval_source = sources.open_source(config.data.eval, root=config.data.root) if config.data.eval else None
        self.tokenizer = self._tokenizer()
        self.steps = config.steps or math.ceil(config.epochs * len(self.source) / config.batch_size)
        self.step = Step(
            self.method,
            optimizer.create(config.optimizer, self.steps),
            self.mesh,
            config.precision,
            config.microbatches,
            config.optimizer.frozen,
        )
        check_frozen(self.step)
        self.encoder = Encoder(self.method, self.mesh, config.precision, self.tokenizer)
        self.training = loader.TrainingLoader(
            self.source,
            self.tokenizer,
            config.data,
            self.method.image_size,
            self.method.context_length,
            config.batch_size,
            config.seed,
            jax.process_index(),
            jax.process_count(),
            # A chunk that is bad as a whole comes up within one window.
            skips.SkipLog(
                config.data.max_skip_rate, 4 * config.data.shuffle_window if mixture.is_chunked(self.source) else 1000
            ),
        )
        self.skips = skips.SkipLog()
        self.checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
        self.state, said = self._initial_state()
        self.start = int(self.state.step)
        if self.start > self.steps:
            raise UserError(
                f"{workdir} is at step {self.start}, past steps={self.steps}; give more steps or another workdir"
            )
        if self.main:
            workdir.mkdir(parents=True, exist_ok=True)
            _write(workdir / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
            _write(workdir / "tokenizer.json", self.tokenizer.to_json())
        self.metrics = MetricLog(workdir, self.start) if self.main else None
        self.progress = Progress(self.start, self.steps, self.main)
        self.progress.say(said)
        self.throughput = Throughput()
        self.profiling = False

    def _tokenizer(self) -> tokenizers.Tokenizer:
        saved = self.workdir / "tokenizer.json"
        data = self.config.data
        if _begun(self.workdir) and saved.exists():
            tokenizer = tokenizers.from_json(saved.read_text())
        elif data.vocabulary:
            tokenizer = tokenizers.load(storage.resolve(data.vocabulary, data.root))
        else:
            captions = loader.caption_sample(self.source, data.caption_templates)
            tokenizer = tokenizers.train(captions, data.train_vocabulary)
        if tokenizer.vocab_size > self.method.text.vocab_size:
            raise UserError(
                f"the vocabulary has {tokenizer.vocab_size} tokens and method.text.vocab_size is only "
                f"{self.method.text.vocab_size}; set config.method.text.vocab_size={tokenizer.vocab_size}"
            )
        return tokenizer

    def _initial_state(self) -> tuple[TrainState, str]:
        if self.checkpoints.latest is not None:
            state = self.checkpoints.restore(self.step.abstract_state)
            return state, f"continuing from the checkpoint of step {self.checkpoints.latest} in {self.workdir}"
        state = self.step.init(self.config.seed)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        said = (
            f"{len(self.source):,} pairs, {count:,} parameters, {self.mesh.size} device(s), {self.steps:,} steps of "
            f"{self.config.batch_size} pairs, in {self.workdir}"
        )
        if self.config.init_from:
            state, taken = init_from.start_from(self.config, self.method, self.mesh, self.tokenizer, state)
            said += f", {taken:,} of them from {self.config.init_from}"
        return state, said

    def loop(self) -> None:
        """Steps from `start` to the end, two in flight at most; each one's figures are checked before the next save."""
        stop = _StopSignal()
        flying: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        batches = self._batches()
        for step in range(self.start + 1, self.steps + 1):
            began = time.perf_counter()
            batch = next(batches)
            self.throughput.add(self.config.batch_size, time.perf_counter() - began)
            self._profile(step)
            self.state, metrics = self.step.train(self.state, batch)
            flying.append((step, metrics))
            due = _due(step, self.config.eval_every) or step == self.steps
            save = _due(step, self.config.checkpoint_every) or step == self.steps
            stopping = stop.asked(step)
            while len(flying) > (0 if due or save or stopping else 1):
                self._settle(*flying.popleft(), evaluating=due)
            if save or stopping:
                self._save(step)
            if due and step < self.steps:
                self._evaluate(step)
            if stopping and step < self.steps:
                self.checkpoints.close()
                raise Preempted(f"stopped by SIGTERM after step {step}; everything is saved, the same command goes on")

    def finish(self) -> None:
        """The final evaluation and the page; the state is saved already."""
        self.checkpoints.wait()
        if self.start == self.steps:
            self.progress.say(f"all {self.steps} steps are done already")
        for result in self._evaluate(self.steps):
            self.progress.say(evaluate.summary(result))
        pictures = gallery(self.encoder, self.state.variables, self.eval_source) if self.eval_source else None
        for log in (self.training.skips, self.skips, *(evaluation.skips for evaluation in self.evaluations)):
            if log.total:
                self.progress.say(f"skipped {log.total:,} records: {log}")
        if self.main:
            self.progress.say(f"report: {report.write(self.workdir, pictures).absolute()}")

    def close(self) -> None:
        if self.profiling:
            self._stop_profiling()
        self.progress.close()
        self.checkpoints.close()
        if self.metrics:
            self.metrics.close()

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        over_devices = sharding.batch_sharding(self.mesh)
        for batch in self.training.batches(self.start, self.steps):
            yield {name: jax.make_array_from_process_local_data(over_devices, rows) for name, rows in batch.items()}

    def _settle(self, step: int, metrics: Mapping[str, jax.Array], evaluating: bool) -> None:
        """Waits for a step's figures, stops the run on one that is not finite, logs them where they are due."""
        figures = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(figures[name]):
                last = self.checkpoints.latest
                raise NotFinite(
                    f"step {step}: {name} is {figures[name]}; stopped, and nothing after "
                    f"{'the start' if last is None else f'step {last}'} is saved. A lower optimizer.learning_rate or "
                    f"optimizer.clip_norm=1.0 is what usually helps"
                )
        self.progress.step()
        evaluating = evaluating and _due(step, self.config.eval_every) or step == self.steps
        if not (_due(step, self.config.log_every) or evaluating):
            return
        figures |= self.throughput.read()
        figures["learning_rate"] = float(optimizer.schedule(self.config.optimizer, self.steps)(step - 1))
        figures["skipped"] = self.training.skips.total
        self.progress.show(step, figures)
        if evaluating and self.eval_source:
            with self._paused():
                figures |= validation_loss(
                    self.step,
                    self.state.variables,
                    self.eval_source,
                    self.tokenizer,
                    self.config.batch_size,
                    self.skips,
                )
        if self.metrics:
            self.metrics.write(step, figures)

    def _save(self, step: int) -> None:
        with self._paused():
            model = {"config": to_dict(self.config), "tokenizer": self.tokenizer.to_json()}
            self.checkpoints.save(step, self.state, model)

    def _evaluate(self, step: int) -> list[dict[str, Any]]:
        with self._paused():
            folder = self.workdir / "evals" / str(step)
            names = {"model": f"{self.config.method['name']}", "pretrained": f"{self.workdir.name}@{step}"}
            results = evaluate.run_all(self.evaluations, self.encoder, self.state.variables, folder, names)
            if self.metrics and results:
                self.metrics.write_evaluations(step, results)
            return results

    def _paused(self) -> _Pause:
        return _Pause(self.throughput)

    def _profile(self, step: int) -> None:
        first, last = self.config.profile_steps
        if step == first and last:
            jax.block_until_ready(self.state)
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self.profiling = True
        elif self.profiling and step > last:
            self._stop_profiling()

    def _stop_profiling(self) -> None:
        jax.block_until_ready(self.state)
        jax.profiler.stop_trace()
        self.profiling = False
        self.progress.say(f"profiler trace: {self.workdir / 'profile'}")


class _Pause:
    """Time inside does not count as training."""

    def __init__(self, throughput: Throughput):
        self._throughput = throughput

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._throughput.pause(time.perf_counter() - self._began)


class _StopSignal:
    """Whether SIGTERM has come, agreed between all processes so that they save the same step."""

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._told = threading.Event()
        # With several processes jax.distributed listens itself, and tells all of them at which step to stop.
        if not self._several and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._told.set())

    def asked(self, step: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._told.is_set()


def check_frozen(step: Step) -> None:
    """Raises UserError where the recipe freezes parameters and finds none, or leaves none to train."""
    found = jax.tree.leaves(optimizer.frozen_paths(step.abstract_state.params, step.frozen))
    if step.frozen and not any(found) or all(found):
        which = "every" if all(found) else "no"
        raise UserError(
            f"config.optimizer.frozen={step.frozen!r} is found in {which} parameter's path, such as image/positions"
        )


def check_resumable(config: Config, workdir: pathlib.Path) -> None:
    """Compares a config with the one an earlier run left in the workdir.

    Raises:
      UserError: a key differs that a run cannot change on its way.
    """
    path = workdir / "config.json"
    if not path.exists() or not _begun(workdir):
        return
    written = json.loads(path.read_text())
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
    """Every key of a config, those of its method too, whether they were given or not."""
    return to_dict(config) | {"method": methods.to_config(methods.from_config(config.method))}


def _begun(workdir: pathlib.Path) -> bool:
    """Whether there is a complete checkpoint to go on from; without one a run starts anew."""
    return any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _write(path: pathlib.Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
