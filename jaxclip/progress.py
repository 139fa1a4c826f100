"""The progress of a run on standard error: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import tqdm

# Work that takes longer than this is named while it goes on.
_SHOWN_AFTER = 2.0  # seconds
_LINE_EVERY = 10.0

T = TypeVar("T")


class Progress:
    """A bar over the steps on a terminal, otherwise lines; messages and phases between them.

    Args:
      start: steps done already.
      steps: length of the run.
      enabled: whether anything is shown.
    """

    def __init__(self, start: int, steps: int, enabled: bool):
        self._enabled = enabled
        self._steps = steps
        self._terminal = sys.stderr.isatty()
        self._said = -math.inf
        self._bar = tqdm.tqdm(
            initial=start,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            disable=not (enabled and self._terminal),
            # The time left is our own: tqdm's would count compiling and evaluating as steps.
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def advance(self, steps: int) -> None:
        """Counts steps."""
        self._bar.update(steps)

    def show(self, step: int, metrics: Mapping[str, Any], seconds_per_step: float | None) -> None:
        """Shows a step's metrics and how long the remaining steps take, without evaluations."""
        figures = (
            f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.0f} images/s, "
            f"data wait {metrics['data_wait']:.1%}"
        )
        if seconds_per_step is not None:
            figures += f", {duration(seconds_per_step * (self._steps - step))} left"
        self._bar.set_postfix_str(figures)
        now = time.monotonic()
        if self._enabled and not self._terminal and (now - self._said >= _LINE_EVERY or step == self._steps):
            self._said = now
            print(f"step {step}/{self._steps}: {figures}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        if self._enabled:
            tqdm.tqdm.write(message, file=sys.stderr)
            sys.stderr.flush()

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Says what is done in the block if it takes longer than two seconds."""
        with phase(what, enabled=self._enabled):
            yield

    def restart(self, start: int) -> None:
        """Goes back to a step."""
        self._bar.reset(self._steps)
        self._bar.update(start)

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def phase(what: str, *, enabled: bool = True) -> Iterator[None]:
    """Says on standard error what is done in the block if it takes longer than two seconds.

    Args:
      what: such as "reading".
      enabled: whether anything is said.
    """

    def say() -> None:
        tqdm.tqdm.write(f"{what} ...", file=sys.stderr)
        sys.stderr.flush()

    timer = threading.Timer(_SHOWN_AFTER, say)
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def counted(items: Iterable[T], total: int, each: int, unit: str) -> Iterator[T]:
    """The items, with how many units of them are done and the time left: a bar on a terminal, otherwise lines.

    Args:
      items: such as batches.
      total: the number of units in all of them.
      each: the number of units in one.
      unit: such as "images".
    """
    began = said = time.monotonic()
    terminal = sys.stderr.isatty()
    with tqdm.tqdm(total=total, unit=f" {unit}", leave=False, dynamic_ncols=True, disable=not terminal) as bar:
        for number, item in enumerate(items):
            yield item
            done, now = min((number + 1) * each, total), time.monotonic()
            bar.update(done - bar.n)
            if not terminal and now - said >= _LINE_EVERY and done < total:
                said, left = now, (now - began) / done * (total - done)
                print(f"{done:,} of {total:,} {unit}, {duration(left)} left", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(42), duration(750), duration(100_000)
    ('42 s', '12.5 min', '27.8 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
