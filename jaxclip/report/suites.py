"""Bars of the data sets that one task was evaluated on, the best first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.report.workdir import EvaluationRecord
from jaxclip.report.writing import escape, number, percent, title_of

# Two sets are read more easily in their table.
_FEWEST = 3
_CHANCE = re.compile(r"\bchance (\d+(?:\.\d+)?)%")


class _Figure(NamedTuple):
    """The figure that people quote of an evaluation, as the first of its table."""

    title: str
    value: float
    fraction: bool


def suite_figures(evaluations: Sequence[EvaluationRecord]) -> str:
    """A figure of bars for each task with three data sets or more, as HTML; "" if there is none."""
    groups: dict[tuple[str, str, bool], list[tuple[EvaluationRecord, float]]] = {}
    for evaluation in evaluations:
        figure = _figure(evaluation)
        if figure:
            group = (evaluation.task, figure.title, figure.fraction)
            groups.setdefault(group, []).append((evaluation, figure.value))
    return "".join(
        _bars(title, members, fractions) for (_, title, fractions), members in groups.items() if len(members) >= _FEWEST
    )


def _figure(evaluation: EvaluationRecord) -> _Figure | None:
    for table in evaluation.tables:
        for row, cells in table.rows.items():
            if cells and isinstance(cells[0], float):
                title = f"{table.title}, {row}" if row else table.title
                return _Figure(f"{title}: {table.columns[0]}", cells[0], table.fractions)
    return None


def _bars(title: str, members: Sequence[tuple[EvaluationRecord, float]], fractions: bool) -> str:
    lowest_first = title.endswith(("rank", "error"))
    ranked = sorted(members, key=lambda member: (member[1] if lowest_first else -member[1], member[0].dataset))
    write = percent if fractions else number
    whole = 1.0 if fractions else max(max(value for _, value in members), 1e-9)
    items = ""
    has_chance = False
    for evaluation, value in ranked:
        chance = _chance(evaluation) if fractions else None
        has_chance |= chance is not None
        mark = (
            f'<b style="left:{100 * chance:.1f}%" title="chance {percent(chance)}"></b>' if chance is not None else ""
        )
        width = min(max(100 * value / whole, 0.0), 100.0)
        items += (
            f'<li><span class="name">{escape(title_of(evaluation.dataset))}</span>'
            f'<span class="bar"><i style="width:{width:.1f}%"></i>{mark}</span>'
            f'<span class="value">{write(value)}</span></li>'
        )
    mean = f"mean of {len(members)} sets {write(float(np.mean([value for _, value in members])))}"
    key = '<span class="chance">chance</span>' if has_chance else ""
    return (
        f'<figure class="suite"><figcaption><b>{escape(title)}</b><span class="last">{mean}</span>{key}</figcaption>'
        f'<ol class="bars">{items}</ol></figure>'
    )


def _chance(evaluation: EvaluationRecord) -> float | None:
    """The accuracy of guessing, a fraction, as the headline says it."""
    found = _CHANCE.search(evaluation.headline[1]) if evaluation.headline else None
    return min(float(found[1]) / 100, 1.0) if found else None
