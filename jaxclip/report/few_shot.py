"""Accuracy of probes over the number of images of each class that they learn from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.report import plots
from jaxclip.report.charts import axis, tick_labels
from jaxclip.report.workdir import EvaluationRecord
from jaxclip.report.writing import count, percent, title_of

_SHOTS = re.compile(r"(\d{1,6})shot")
# The place of the most shots; all images stand at 1.
_MOST = 0.84


class _Drawn(NamedTuple):
    """Probes of so many images of each class: the mean and the deviation of their accuracies, and their number."""

    shots: int
    mean: float
    deviation: float
    times: int


def few_shot_figures(evaluations: Sequence[EvaluationRecord]) -> str:
    """A plot for each probe of few images, as HTML; "" if there is none.

    Beside it stands the zero-shot accuracy on the same data, if that was evaluated.
    """
    return "".join(_plot(evaluation, _zeroshot(evaluation, evaluations)) for evaluation in evaluations)


def _zeroshot(probe: EvaluationRecord, evaluations: Sequence[EvaluationRecord]) -> float | None:
    """The accuracy of zero-shot classification on a probe's data."""
    for one in evaluations:
        same = one.dataset == probe.dataset or (one.data and one.data == probe.data)
        if same and one.task == "zeroshot_classification" and "acc1" in one.metrics:
            return one.metrics["acc1"]
    return None


def _plot(probe: EvaluationRecord, zeroshot: float | None) -> str:
    drawn = sorted(
        _Drawn(int(name[1]), float(np.mean(values)), float(np.std(values)), len(values))
        for name, values in ((_SHOTS.fullmatch(name), values) for name, values in probe.fewer_images.items())
        if name and int(name[1]) > 0
    )
    if not drawn:
        return ""
    whole = probe.metrics.get("lp_acc1")
    shown = [value for value in (zeroshot, whole) if value is not None]
    shown += [one.mean + sign * one.deviation for one in drawn for sign in (-1, 1)]
    low, high, ticks = axis((max(min(shown), 0.0), min(max(shown), 1.0)), 5)

    def up(value: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0)

    most = np.log2(max(drawn[-1].shots, 2))
    places = [(float(_MOST * np.log2(one.shots) / most), up(one.mean)) for one in drawn]
    parts, legend = "", plots.key("linear probe", "c0")
    if zeroshot is not None:
        parts += plots.line([(0.0, up(zeroshot)), (1.0, up(zeroshot))], "c1 dashed")
        legend += plots.key(f"zero-shot {percent(zeroshot)}", "c1 dashed")
    parts += plots.line(places, "c0")
    across = [(place, f"{one.shots}") for (place, _), one in zip(places, drawn, strict=True)]
    if whole is not None:
        end = (1.0, up(whole))
        parts += plots.line([places[-1], end], "c0 dashed") + plots.dot(end, f"all images: {percent(whole)}", "c0")
        across.append((1.0, "all"))
    for (x, y), one in zip(places, drawn, strict=True):
        parts += plots.whisker(x, up(one.mean - one.deviation), up(one.mean + one.deviation), "c0")
        words = f"{count(one.shots, 'image')} of each class: {percent(one.mean)} ± {percent(one.deviation)}"
        parts += plots.dot((x, y), words, "c0")
    times = max(one.times for one in drawn)
    return plots.plot(
        title_of(probe.dataset),
        parts,
        across=across,
        up=[(up(tick), label) for tick, label in zip(ticks, tick_labels(ticks, fractions=True), strict=True)],
        below="images of each class",
        legend=legend,
        note=f"Whiskers: deviation of {times} draws of the images." if times > 1 else "",
    )
