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

    Attributes:
      values: in the order of the steps, with the sign that makes less of them better.
    """

    def __init__(self, metric: str, workdir: pathlib.Path, last_step: int):
        self._name, self._sign = schedule.signed(metric)
        recorded = dict(_recorded(self._name, workdir))
        self._steps = {step for step in recorded if step <= last_step}
        self.values = [self._sign * recorded[step] for step in sorted(self._steps)]

    def add(self, step: int, metrics: Mapping[str, float | None]) -> bool:
        """Takes the metric's value at a step, if it is there and new; returns whether it is the best so far."""
        value = metrics.get(self._name)
        if value is None or step in self._steps:
            return False
        best = min((old for old in self.values if math.isfinite(old)), default=math.inf)
        self._steps.add(step)
        self.values.append(self._sign * value)
        return self._sign * value < best


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
