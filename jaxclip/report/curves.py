"""Curves over the training steps: losses, results of evaluations, and all other logged metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxclip.report.charts import Series, line_chart
from jaxclip.report.workdir import RunRecord
from jaxclip.report.writing import count, title_of

# Titles of metrics whose name is unsuitable as a title.
_TITLES = {"grad_norm": "Gradient norm", "param_norm": "Parameter norm"}
# Metrics with a chart of their own, or without one; those of validation are drawn with those of training.
_PLACED = ("step", "loss", "skipped", "images_per_second", "data_wait")
# More curves cannot be told apart: the page has six colors, each whole and dashed.
_MOST_CURVES = 12
_PLACED_PREFIXES = ("validation_", "learning_rate")


def learning_figures(run: RunRecord, charts: Mapping[str, Sequence[str]]) -> str:
    """The loss, the method's own charts and the evaluations over the steps, as HTML figures.

    Args:
      run: the run's records.
      charts: the method's, `jaxclip.methods.Method.charts`.
    """
    losses = run.column("loss")[1]
    spoilt = int((~np.isfinite(losses)).sum())
    note = f"Not a finite number at {count(spoilt, 'logged step')}." if spoilt else ""
    figures = line_chart("Loss", _with_validation(run, ["loss"]), note=note)
    for title, names in charts.items():
        figures += _metric_chart(run, title, names)
    return figures + _evaluation_charts(run)


def further_figures(run: RunRecord, charts: Mapping[str, Sequence[str]]) -> str:
    """The learning rates and every metric that is in no other chart, as small HTML figures."""
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    rates = [name for name in names if name.startswith("learning_rate")]
    placed = {*_PLACED, *(name for shown in charts.values() for name in shown)}
    further = [name for name in names if name not in placed and not name.startswith(_PLACED_PREFIXES)]
    series = [
        Series(title_of(name.removeprefix("learning_rate_")), *run.column(name), color=color)
        for color, name in enumerate(rates)
    ]
    figures = line_chart("Learning rate", series, include=(0,), small=True)
    for name in further:
        title = _TITLES.get(name, title_of(name).capitalize())
        one = Series(title.lower(), *run.column(name), smoothed=True)
        figures += line_chart(title, [one], include=_span([name]), fractions=_are_fractions([name]), small=True)
    return figures


def _metric_chart(run: RunRecord, title: str, names: Sequence[str]) -> str:
    return line_chart(title, _with_validation(run, names), include=_span(names), fractions=_are_fractions(names))


def _with_validation(run: RunRecord, names: Sequence[str]) -> list[Series]:
    """Curves of metrics in training and, if they are validated, on held-out data."""
    series: list[Series] = []
    for name in names:
        words = f"{title_of(name)}, " if len(names) > 1 else ""
        series.append(Series(f"{words}training", *run.column(name), color=len(series), smoothed=True))
        held_out = run.column(f"validation_{name}")
        if len(held_out[0]):
            series.append(Series(f"{words}validation", *held_out, color=len(series), measured=True))
    return series


def _are_fractions(names: Sequence[str]) -> bool:
    """Whether metrics are fractions by their names: those of accuracies are."""
    return all(name.endswith("accuracy") for name in names)


def _span(names: Sequence[str]) -> tuple[float, ...]:
    """Values that the axis of metrics must span."""
    if _are_fractions(names):
        return (0, 1)
    return (0,) if all(name.endswith("norm") for name in names) else ()


def _evaluation_charts(run: RunRecord) -> str:
    """A chart of each row of the evaluations' tables, if it was measured at more than one step."""
    # (table, row) -> dataset -> column -> [(step, figure)]
    rows: dict[tuple[str, str], dict[str, dict[str, list[tuple[int, float]]]]] = {}
    fractions = {}
    for evaluation in run.evaluations:
        for table in evaluation.tables:
            fractions[table.title] = table.fractions
            for row, cells in table.rows.items():
                columns = rows.setdefault((table.title, row), {}).setdefault(evaluation.dataset, {})
                for column, cell in zip(table.columns, cells, strict=True):
                    if isinstance(cell, float):
                        columns.setdefault(column, []).append((evaluation.step, cell))
    figures = ""
    for (table_title, row), datasets in rows.items():
        title, lines = _row_curves(f"{table_title}, {row}" if row else table_title, datasets)
        if max(map(len, lines.values()), default=0) > 1:
            share = fractions[table_title]
            figures += line_chart(title, _measured(lines), include=(0, 1) if share else (), fractions=share)
    return figures


def _row_curves(
    title: str, datasets: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
) -> tuple[str, dict[str, Sequence[tuple[int, float]]]]:
    """The chart of a table's row: its title, and the points of its curves by their names.

    Of several data sets there is a curve each, of the first column, which is the figure that people quote; of a single
    one there is a curve of each column. Of more than a dozen data sets there is a curve of their mean.
    """
    if len(datasets) == 1:
        ((name, columns),) = datasets.items()
        return f"{title}: {title_of(name)}", dict(columns)
    first = next((column for columns in datasets.values() for column in columns), "")
    curves = {title_of(name): columns[first] for name, columns in sorted(datasets.items()) if first in columns}
    if len(curves) > _MOST_CURVES:
        curves = _mean_curve(list(curves.values()))
        return f"{title}: {first}, {next(iter(curves), '')}", curves
    return f"{title}: {first}", curves


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Sequence[tuple[int, float]]]:
    """The mean of the data sets that were evaluated at as many steps as any."""
    most = max(map(len, curves))
    steps = [dict(points) for points in curves if len(points) == most]
    shared = sorted(set.intersection(*(set(one) for one in steps)))
    name = f"mean of {len(steps)} data sets"
    return {name: [(step, float(np.mean([one[step] for one in steps]))) for step in shared]} if shared else {}


def _measured(lines: Mapping[str, Sequence[tuple[int, float]]]) -> list[Series]:
    series = []
    for color, (name, points) in enumerate(lines.items()):
        steps, values = np.array(points, dtype=np.float64).T
        series.append(Series(name, steps, values, color=color, measured=True))
    return series
