"""What a person sees of a run while it goes on: a progress bar, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from jaxclip.io import atomic_write
from jaxclip.quiet import quiet_stderr


class MetricLog:
    """`metrics.jsonl`, each logged step once, and the same scalars for TensorBoard through clu.

    Rows of steps after `start` are dropped: they belong to a future that a restart has undone.
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
        """One row; a value that is not finite becomes null, since JSON has no other word for it."""
        row = {"step": step} | {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._writer.write_scalars(step, dict(metrics))

    def write_evaluations(self, step: int, results: Sequence[Mapping[str, Any]]) -> None:
        """Evaluations go to TensorBoard; their files are written where they are run."""
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


class Throughput:
    """Pictures per second and the share of time spent waiting for data, between two readings; pauses do not count."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._paused = 0.0
        self._pictures = 0

    def add(self, pictures: int, waited: float) -> None:
        self._pictures += pictures
        self._waited += waited

    def pause(self, seconds: float) -> None:
        """Time that went to something other than training (an evaluation, a save)."""
        self._paused += seconds

    def read(self) -> dict[str, float]:
        """The figures since the last reading, which starts anew."""
        elapsed = max(time.perf_counter() - self._start - self._paused, 1e-9)
        figures = {"images_per_second": self._pictures / elapsed, "data_wait": self._waited / elapsed}
        self._restart()
        return figures


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

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
        """A line above the bar."""
        if self._enabled:
            tqdm.tqdm.write(message, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        self._bar.close()
