"""The progress bar, metrics.jsonl, TensorBoard, throughput and profiles of a run."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import tqdm

from jaxclip.io import atomic_write
from jaxclip.quiet import quiet_stderr


class MetricLog:
    """Writer of `metrics.jsonl`, with one row per logged step, and of the same scalars for TensorBoard through clu.

    Existing rows of steps after `start` are removed, because the restarted run repeats these steps.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        with quiet_stderr():
            from clu import metric_writers  # Imports TensorFlow, which takes seconds.

        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step(line) <= start]
            with atomic_write(self._path) as file:
                file.write("".join(line + "\n" for line in kept).encode())
        self._file = self._path.open("a", buffering=1)
        self._writer = metric_writers.create_default_writer(str(workdir))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row. Values that are not finite become null, because JSON cannot represent them."""
        row = {"step": step} | {key: value if math.isfinite(value) else None for key, value in metrics.items()}
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

    def close(self) -> None:
        self._file.close()
        self._writer.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # A line that a kill cut off.


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
        self.step = self._progress.step

    @contextlib.contextmanager
    def waiting_for_data(self, images: int) -> Iterator[None]:
        """Counts the time inside as waiting for a batch of so many images."""
        start = time.perf_counter()
        yield
        self._throughput.add(images, time.perf_counter() - start)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside as training: an evaluation, a save."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._throughput.pause(time.perf_counter() - start)

    def show(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Shows a step's metrics; returns the throughput since the last call, which belongs to them."""
        throughput = self._throughput.read()
        self._progress.show(step, {**metrics, **throughput})
        return throughput

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of metrics."""
        if self._log:
            self._log.write(step, metrics)

    def write_evaluations(self, step: int, results: Sequence[Mapping[str, Any]]) -> None:
        """Writes the metrics of evaluations."""
        if self._log and results:
            self._log.write_evaluations(step, results)

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
    """Images per second and the fraction of time spent waiting for data, since the last reading and without pauses."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._paused = 0.0
        self._images = 0

    def add(self, images: int, waited: float) -> None:
        self._images += images
        self._waited += waited

    def pause(self, seconds: float) -> None:
        """Excludes time that was spent on something other than training, such as an evaluation or a save."""
        self._paused += seconds

    def read(self) -> dict[str, float]:
        """The figures since the last reading; starts a new interval."""
        elapsed = max(time.perf_counter() - self._start - self._paused, 1e-9)
        figures = {"images_per_second": self._images / elapsed, "data_wait": self._waited / elapsed}
        self._restart()
        return figures


class Progress:
    """A progress bar on a terminal; otherwise a line every ten seconds."""

    def __init__(self, start: int, steps: int, enabled: bool):
        self._enabled = enabled
        self._steps = steps
        self._terminal = sys.stderr.isatty()
        self._began, self._first, self._said = time.monotonic(), start, -math.inf
        self._bar = tqdm.tqdm(
            initial=start, total=steps, unit="step", dynamic_ncols=True, disable=not (enabled and self._terminal)
        )

    def step(self) -> None:
        self._bar.update()

    def show(self, step: int, metrics: Mapping[str, Any]) -> None:
        figures = (
            f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.0f} images/s, "
            f"data wait {metrics['data_wait']:.1%}"
        )
        self._bar.set_postfix_str(figures)
        now = time.monotonic()
        if self._enabled and not self._terminal and (now - self._said >= 10 or step == self._steps):
            self._said = now
            left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
            print(f"step {step}/{self._steps}: {figures}, {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        if self._enabled:
            tqdm.tqdm.write(message, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        self._bar.close()
