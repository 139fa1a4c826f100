"""Signs of a training that goes wrong: numbers that are not finite, a spike of the loss, a collapse."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping

import numpy as np


class NotFinite(Exception):
    """A loss, a gradient, or something that a step left in the state is infinite or not a number.

    Attributes:
      step: the step.
      name: what is not finite.
      value: its value, and what can be done.
    """

    def __init__(self, step: int, name: str, value: str):
        super().__init__(f"step {step}: {name} is {value}")
        self.step, self.name, self.value = step, name, value


def check_finite(step: int, figures: Mapping[str, float]) -> None:
    """Raises NotFinite if a step's loss, gradient or new state is not finite."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(figures[name]):
            raise NotFinite(step, name, str(figures[name]))
    if not figures["finite"]:
        raise NotFinite(step, "the updated state (parameters, moments, statistics)", "not finite")


class Watch:
    """Looks at the figures of every step, and says what a person would want to know of.

    A spike is a loss further above the median of the last 50 than ten times their usual distance from it, and by more
    than a tenth. A collapse is a `*_spread` of nearly 0 in five steps in a row: embeddings that are all alike, so that
    all logits are equal. Each is said once and again when 50 steps have passed without it.
    """

    _WINDOW, _IN_A_ROW = 50, 5
    _ALIKE = 1e-5

    def __init__(self) -> None:
        self._losses: collections.deque[float] = collections.deque(maxlen=self._WINDOW)
        self._alike: collections.Counter[str] = collections.Counter()
        self._last_said: dict[str, int] = {}

    def look(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """The warnings about a step, a line each."""
        found = {}
        loss = figures["loss"]
        if len(self._losses) == self._WINDOW:
            median = float(np.median(self._losses))
            usual = float(np.median(np.abs(np.array(self._losses) - median)))
            if loss - median > max(10 * usual, 0.1 * abs(median), 1e-3):
                found["loss"] = (
                    f"loss {loss:.4f}, a spike: the last {self._WINDOW} steps had {median:.4f} in the middle"
                )
        self._losses.append(loss)
        for name, value in figures.items():
            if not name.endswith("_spread"):
                continue
            self._alike[name] = self._alike[name] + 1 if value < self._ALIKE else 0
            if self._alike[name] >= self._IN_A_ROW:
                what = name.removesuffix("_spread")
                found[name] = (
                    f"the embeddings of all {what}s are alike ({name} {value:.1e}): the model has collapsed, or all "
                    f"{what}s of a batch are the same"
                )
        lines = []
        for name, line in found.items():
            if step - self._last_said.get(name, -math.inf) > self._WINDOW:
                lines.append(f"step {step}: {line}")
            self._last_said[name] = step
        return lines
