"""Effective robustness: the run's accuracies among those of reference models, on logit axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.evaluate.robustness import ACCURACY, Reference, logit, unmatched
from jaxclip.report import plots
from jaxclip.report.workdir import RunRecord
from jaxclip.report.writing import MINUS, escape, percent, title_of

# Accuracies at which an axis may have a tick, those wanted most first.
_TICKS = (
    *(0.5, 0.9, 0.1, 0.99, 0.01, 0.7, 0.3, 0.8, 0.2, 0.95, 0.05, 0.6, 0.4, 0.98, 0.02),
    *(0.75, 0.25, 0.85, 0.15, 0.65, 0.55, 0.45, 0.35, 0.995, 0.005, 0.999, 0.001),
)
_APART = 0.11  # of the axis's length
# Figures of a run beyond these are drawn there: 0 and 1 have no logit.
_ENDS = (0.0005, 0.9995)


class _Axis(NamedTuple):
    """Logits between two ends."""

    low: float
    high: float

    @classmethod
    def around(cls, accuracies: Iterable[float]) -> _Axis:
        """An axis with some room on either side."""
        values = logit(np.clip(list(accuracies), *_ENDS))
        room = 0.08 * (values.max() - values.min()) or 0.5
        return cls(float(values.min() - room), float(values.max() + room))

    def place(self, accuracy: float) -> float:
        """Where an accuracy stands, from 0 to 1."""
        return (float(logit(np.clip(accuracy, *_ENDS))) - self.low) / (self.high - self.low)

    def ticks(self) -> list[plots.Tick]:
        found: dict[float, float] = {}
        for accuracy in _TICKS:
            place = self.place(accuracy)
            if 0 <= place <= 1 and all(abs(place - other) >= _APART for other in found.values()):
                found[accuracy] = place
        return [(place, f"{100 * accuracy:g}%") for accuracy, place in sorted(found.items())]


def shift_figures(run: RunRecord, reference: Reference) -> str:
    """A plot of each shifted data set that was evaluated, and a table, as HTML.

    Raises:
      UserError: none was evaluated at a step at which the in-distribution one was.
    """
    # Accuracies by step, and of each by data set.
    steps: dict[int, dict[str, float]] = {}
    for evaluation in run.evaluations:
        if ACCURACY in evaluation.metrics:
            steps.setdefault(evaluation.step, {})[evaluation.dataset] = evaluation.metrics[ACCURACY]
    steps = {step: accuracies for step, accuracies in sorted(steps.items()) if reference.effective(accuracies)}
    if not steps:
        raise unmatched(reference)
    figures = "".join(_plot(name, reference, steps) for name in reference.shifted)
    last = max(steps)
    return f'<div class="charts">{figures}</div>{_table(reference, steps[last], last)}'


def _plot(name: str, reference: Reference, steps: Mapping[int, Mapping[str, float]]) -> str:
    base = reference.in_distribution
    ours = {step: (found[base], found[name]) for step, found in steps.items() if name in found}
    if not ours:
        return ""
    known = np.isfinite(reference.shifted[name])
    theirs = list(zip(reference.accuracy[known].tolist(), reference.shifted[name][known].tolist(), strict=True))
    x, y = (_Axis.around(pair[side] for pair in [*theirs, *ours.values()]) for side in (0, 1))
    fit = reference.fit(name)
    parts = plots.line(_within(1.0, 0.0, x, y), "soft dashed") + plots.line(_within(*fit, x, y), "c0")
    models = [model for model, has in zip(reference.models, known, strict=True) if has]
    for model, (inside, outside) in zip(models, theirs, strict=True):
        parts += plots.dot((x.place(inside), y.place(outside)), f"{model}: {_pair(inside, outside)}", "c0 reference")
    parts += plots.line([(x.place(inside), y.place(outside)) for inside, outside in ours.values()], "c1 way")
    last = max(ours)
    for step, (inside, outside) in ours.items():
        words = f"this run at step {step:,}: {_pair(inside, outside)}"
        parts += plots.dot((x.place(inside), y.place(outside)), words, "c1 own" if step == last else "c1 earlier")
    legend = plots.key("this run", "c1 round") + plots.key(f"{len(models)} reference models", "c0 round")
    return plots.plot(
        title_of(name),
        parts,
        across=x.ticks(),
        up=y.ticks(),
        below=f"accuracy on {title_of(base)}",
        legend=legend + plots.key("their fit", "c0") + plots.key("y = x", "soft dashed"),
        note=f"logit(y) = {fit.slope:.2f} logit(x) {'+' if fit.intercept >= 0 else MINUS} {abs(fit.intercept):.2f}",
    )


def _within(slope: float, intercept: float, x: _Axis, y: _Axis) -> list[plots.Point]:
    """The part of a line of logits that lies between the ends of both axes, as places."""
    ends = [x.low, x.high]
    if slope:
        crossings = sorted((value - intercept) / slope for value in y)
        ends = [max(ends[0], crossings[0]), min(ends[1], crossings[1])]
    elif not y.low <= intercept <= y.high:
        return []
    if ends[0] >= ends[1]:
        return []
    return [((end - x.low) / (x.high - x.low), (slope * end + intercept - y.low) / (y.high - y.low)) for end in ends]


def _pair(inside: float, outside: float) -> str:
    return f"{percent(inside)}, {percent(outside)}"


def _table(reference: Reference, accuracies: Mapping[str, float], step: int) -> str:
    """What the newest model has, what the fit predicts, and the difference."""
    base = reference.in_distribution
    effective = reference.effective(accuracies)
    rows: list[tuple[str, Sequence[str]]] = [
        (name, (percent(accuracies[name]), percent(reference.fit(name).predicted(accuracies[base])), _points(value)))
        for name, value in effective.items()
    ]
    if len(rows) > 1:
        rows.append(("mean", ("", "", _points(float(np.mean(list(effective.values())))))))
    body = "".join(
        f'<tr><th scope="row">{escape(title_of(name))}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    heads = "".join(f'<th scope="col">{words}</th>' for words in ("accuracy", "by the fit", "effective robustness"))
    title = f"{escape(title_of(base))} {percent(accuracies[base])}, step {step:,}"
    return (
        f'<div class="box"><table class="results shifts"><thead><tr><th scope="col">{title}</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)
