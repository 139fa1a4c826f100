"""What is shown and written about a run while it goes on: metrics.jsonl, TensorBoard, progress, profiles."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxclip.errors import UserError
from jaxclip.io import atomic_write
from jaxclip.progress import Progress
from jaxclip.quiet import quiet_stderr


class MetricLog:
    """Writer of `metrics.jsonl`, with one row per logged step, and of the same scalars for TensorBoard through clu.

    Existing rows of steps after `start` are removed, because the restarted run repeats these steps, as are lines that
    are no rows.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        with quiet_stderr():
            from clu import metric_writers  # Imports TensorFlow, which takes seconds.

        self._path = workdir / "metrics.jsonl"
        with _writing(self._path):
            _cut(self._path, start)
            self._file = self._path.open("a+", buffering=1)
        self._writer = metric_writers.create_default_writer(str(workdir))

    def restart(self, start: int) -> None:
        """Removes the rows of steps after `start`, to which the run goes back."""
        self._file.close()
        with _writing(self._path):
            _cut(self._path, start)
            self._file = self._path.open("a+", buffering=1)

    def has(self, step: int) -> bool:
        """Whether there is a row of a step."""
        self._file.seek(0)
        return any(_step(line) == step for line in self._file)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row. Values that are not finite become null, because JSON cannot represent them."""
        row = {"step": step} | {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with _writing(self._path):
            self._file.write(json.dumps(row) + "\n")
        self._writer.write_scalars(step, dict(metrics))

    def write_evaluations(self, step: int, results: Sequence[Mapping[str, Any]]) -> None:
        """Writes evaluations to TensorBoard. Their files are written by the evaluations themselves."""
        scalars = {
            f"{result['dataset']}/{name}": value
            for result in results
            for name, value in result["metrics"].items()
            if value is not None
        }
        self._writer.write_scalars(step, scalars)

    def is_lost(self) -> bool:
        """Whether the file was removed or replaced while it is open."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return True

    def recover(self) -> None:
        """Writes a removed file again: what was in it can still be read, since it is open."""
        self._file.seek(0)
        content = self._file.read()
        with _writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(content)
            self._file.close()
            self._file = self._path.open("a+", buffering=1)

    def close(self) -> None:
        with _writing(self._path):
            self._file.close()
        self._writer.close()


def _cut(path: pathlib.Path, start: int) -> None:
    """Keeps the rows up to a step, each once, and nothing that is no row."""
    if not path.exists():
        return
    rows: dict[float, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        if _step(line) <= start:
            rows.setdefault(_step(line), line)
    with atomic_write(path) as file:
        file.write("".join(line + "\n" for line in rows.values()).encode())


def _step(line: str) -> float:
    """The step of a row; infinite for what is no row: a line that a kill cut off, or that was damaged."""
    if "\ufffd" in line:
        return math.inf
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


class Monitor:
    """Everything that is shown and written about a run while it goes on.

    Args:
      workdir: of the run.
      start: steps done already.
      steps: length of the run.
      enabled: whether this process shows and writes anything.
    """

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, enabled: bool):
        self._log = MetricLog(workdir, start) if enabled else None
        self._progress = Progress(start, steps, enabled)
        self._throughput = Throughput()
        self.say = self._progress.say

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for a batch."""
        start = time.perf_counter()
        yield
        self._throughput.waited(time.perf_counter() - start)

    @contextlib.contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Does not count the time inside as training.

        Args:
          what: is done, such as "evaluating"; shown if it takes long.
        """
        start = time.perf_counter()
        try:
            with self._progress.phase(what):
                yield
        finally:
            self._throughput.pause(time.perf_counter() - start)

    def settled(self, steps: int, images: int) -> None:
        """Counts steps that have ended, with so many images together."""
        self._throughput.settled(steps, images)
        self._progress.advance(steps)

    def rates(self) -> dict[str, float]:
        """Images per second and the share of waiting for data since the last call."""
        return self._throughput.read()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step's metrics."""
        self._progress.show(step, metrics, self._throughput.seconds_per_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of metrics."""
        if self._log:
            self._log.write(step, metrics)

    def has(self, step: int) -> bool:
        """Whether there is a row of a step, or this process writes none."""
        return self._log is None or self._log.has(step)

    def write_evaluations(self, step: int, results: Sequence[Mapping[str, Any]]) -> None:
        """Writes the metrics of evaluations."""
        if self._log and results:
            self._log.write_evaluations(step, results)

    def recover(self) -> bool:
        """Writes metrics.jsonl again if it was removed under the run; returns whether it was."""
        if self._log is None or not self._log.is_lost():
            return False
        self._log.recover()
        return True

    def restart(self, start: int) -> None:
        """Goes back to a step: its rows and all later ones follow again."""
        if self._log:
            self._log.restart(start)
        self._throughput = Throughput()
        self._progress.restart(start)

    def close(self) -> None:
        self._progress.close()
        if self._log:
            self._log.close()


class Profiler:
    """A profiler trace of chosen steps.

    Args:
      folder: of the trace.
      steps: the first and the last step; (0, 0) for none.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int]):
        self._folder = folder
        self._first, self._last = steps
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Starts or stops the trace if it is due before a step; `state` is what the step takes."""
        if step == self._first and self._last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step > self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Stops a trace that is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class Throughput:
    """Images per second and the share of time spent waiting for data, over the steps that have ended, without pauses.

    Attributes:
      seconds_per_step: over the whole run, without pauses; None before the first step has ended.
    """

    def __init__(self) -> None:
        self.seconds_per_step: float | None = None
        self._steps = 0
        self._seconds = 0.0
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._paused = 0.0
        self._images = 0

    def waited(self, seconds: float) -> None:
        """Counts time spent on waiting for a batch."""
        self._waited += seconds

    def pause(self, seconds: float) -> None:
        """Excludes time spent on something other than training, such as an evaluation or a save."""
        self._paused += seconds

    def settled(self, steps: int, images: int) -> None:
        """Counts steps that have ended. A batch that was only drawn is no work done."""
        self._steps += steps
        self._images += images
        self.seconds_per_step = (self._seconds + self._elapsed()) / self._steps

    def read(self) -> dict[str, float]:
        """The figures since the last reading; starts a new interval."""
        elapsed = self._elapsed()
        figures = {"images_per_second": self._images / elapsed, "data_wait": min(1.0, self._waited / elapsed)}
        self._seconds += elapsed
        self._restart()
        return figures

    def _elapsed(self) -> float:
        return max(time.perf_counter() - self._start - self._paused, 1e-9)
