"""The values of an evaluation metric in the course of a run: what plateau schedules and the best checkpoint go by."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping

from jaxclip import schedule


class History:
    """The values of one metric, less being better.

    Args:
      metric: `validation_loss` or another of the validation metrics in metrics.jsonl, or NAME/METRIC of an evaluation
        of the recipe; with a minus before it, a metric of which more is better.
      workdir: of the run, whose files have the values of an earlier start.
      last_step: values of later steps do not count: the run goes on from that step.

    """

    def __init__(self, metric: str, workdir: pathlib.Path, last_step: int):
        self._name, self._sign = schedule.signed(metric)
        recorded = dict(_recorded(self._name, workdir))
        self._values = {step: self._sign * recorded[step] for step in sorted(recorded) if step <= last_step}

    @property
    def values(self) -> list[float]:
        """In the order of the steps, with the sign that makes less of them better."""
        return list(self._values.values())

    @property
    def best_step(self) -> int | None:
        """The first step of the best value; None if there is none that is finite."""
        finite = {step: value for step, value in self._values.items() if math.isfinite(value)}
        return min(finite, key=finite.__getitem__, default=None)

    def add(self, step: int, metrics: Mapping[str, float | None]) -> bool:
        """Takes the metric's value at a step, if it is there and new; returns whether it is the best so far."""
        value = metrics.get(self._name)
        if value is None or step in self._values:
            return False
        self._values[step] = self._sign * value
        return self.best_step == step


def _recorded(name: str, workdir: pathlib.Path) -> Iterator[tuple[int, float]]:
    """The steps and values of a metric in a workdir's files. Lines that a kill cut off are passed over."""
    evaluation, _, metric = name.rpartition("/")
    if evaluation:
        for path in workdir.glob(f"evals/*/{evaluation}.json"):
            value = json.loads(path.read_text()).get("metrics", {}).get(metric)
            if path.parent.name.isdigit() and value is not None:
                yield int(path.parent.name), value
        return
    log = workdir / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get(name) is not None:
            yield int(row["step"]), row[name]
