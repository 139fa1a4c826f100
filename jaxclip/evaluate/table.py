"""Tables of results: a row for each model, a column for each data set."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.errors import UserError
from jaxclip.evaluate.intervals import Outcomes, Spread, spread


class Column(NamedTuple):
    """One figure of one data set."""

    dataset: str
    task: str
    metric: str


class Row(NamedTuple):
    """The figures of one model; those that do not exist are None.

    Attributes:
      model: its name.
      figures: by what they are of.
      outcomes: of the figures that are shown with intervals; the first row is the baseline of the others.
    """

    model: str
    figures: dict[Column, float | None]
    outcomes: dict[Column, Outcomes]


def read(folders: Sequence[pathlib.Path], intervals: bool = False) -> list[Row]:
    """The results in folders, in CLIP_benchmark's JSON form, ours or another program's.

    Args:
      folders: each a run's workdir, of which the last evaluation is taken, or a folder of JSON files.
      intervals: whether the outcomes of the examples are read, too, where results have them.

    Raises:
      UserError: a folder has no results, or a file is none; its outcomes are no strings of 0 and 1, or of another
        length than others over the same examples.
    """
    models: dict[str, Row] = {}
    lengths: dict[tuple[str, str], tuple[int, pathlib.Path]] = {}
    for folder in folders:
        here: dict[str, Row] = {}
        files = sorted(_latest(folder).glob("*.json"))
        if not files:
            raise UserError(
                f"--table: {folder} has no results; give a run's workdir or a folder of jaxclip.evaluate's JSON files"
            )
        for file in files:
            result = _result(file)
            model = f"{result['model']} {result['pretrained']}"
            row = here.setdefault(model, Row(model, {}, {}))
            language = result.get("language", "en")
            dataset = result["dataset"] + ("" if language == "en" else f" ({language})")
            outcomes = _outcomes(result, file, lengths) if intervals else {}
            for metric, value in result["metrics"].items():
                column = Column(dataset, result["task"], metric)
                known = value is not None and math.isfinite(value)
                row.figures[column] = value if known else None
                if known and metric in outcomes:
                    row.outcomes[column] = outcomes[metric]
        for model, row in here.items():
            before = models[model].figures if model in models else {}
            # Runs of one name in different folders are different models.
            differs = any(before[column] != value for column, value in row.figures.items() if column in before)
            name = f"{model} in {folder}" if differs else model
            whole = models.setdefault(name, Row(name, {}, {}))
            whole.figures.update(row.figures)
            whole.outcomes.update(row.outcomes)
    return list(models.values())


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure, with all its digits; after it the parts of its `Spread`, such as NAME/low."""
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heading = ["model"]
    lines: list[list[str | float | None]] = [[row.model] for row in rows]
    for column in columns:
        name, spreads = f"{column.dataset}/{column.task}/{column.metric}", _spreads(rows, column)
        parts = [part for part in Spread._fields if any(getattr(one, part, None) is not None for one in spreads)]
        heading += [name, *(f"{name}/{part}" for part in parts)]
        for line, row, one in zip(lines, rows, spreads, strict=True):
            line += [row.figures.get(column), *(getattr(one, part, None) for part in parts)]
    writer.writerows([heading, *lines])
    return file.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """The first figure of each data set, the best of each column in bold."""
    columns, cells = _first_figures(rows, lambda text: f"**{text}**")
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [["model", *map(_heading, columns)], *cells]]
    lines = [escaped[0], ["---", *("--:" for _ in columns)], *escaped[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_html(rows: Sequence[Row]) -> str:
    """The same as a table element."""
    columns, cells = _first_figures(
        [row._replace(model=html.escape(row.model)) for row in rows], lambda text: f"<b>{text}</b>"
    )
    heading = "".join(f"<th>{html.escape(text)}</th>" for text in ["model", *map(_heading, columns)])
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>\n" for line in cells)
    return f"<table>\n<tr>{heading}</tr>\n{lines}</table>\n"


FORMS: Mapping[str, Callable[[Sequence[Row]], str]] = {"markdown": as_markdown, "csv": as_csv, "html": as_html}


def _latest(folder: pathlib.Path) -> pathlib.Path:
    """The folder with the results: of a workdir, the one of the highest step."""
    steps = [path for path in (folder / "evals").glob("*") if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name), default=folder)


def _result(file: pathlib.Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise UserError(f"--table: {file} cannot be read: {reason}") from None
    texts = ("dataset", "task", "model", "pretrained")
    known = isinstance(result, dict) and isinstance(result.get("metrics"), dict)
    if not known or not all(isinstance(result.get(key), str) for key in texts):
        raise UserError(f"--table: {file} is no result of an evaluation: it lacks metrics, {', '.join(texts)}")
    if not all(value is None or isinstance(value, (int, float)) for value in result["metrics"].values()):
        raise UserError(f"--table: {file} has metrics that are no numbers")
    return result


def _outcomes(
    result: Mapping[str, Any], file: pathlib.Path, lengths: dict[tuple[str, str], tuple[int, pathlib.Path]]
) -> dict[str, Outcomes]:
    """The outcomes by metric; `lengths` are those of all files so far, by metric and examples."""
    texts, examples = result.get("outcomes", {}), result.get("outcomes_of", "")
    if not isinstance(texts, dict) or not isinstance(examples, str):
        raise UserError(f"--table: {file} has outcomes without metrics, or outcomes_of that is no text")
    for metric, text in texts.items():
        if not isinstance(text, str) or not re.fullmatch("[01]+", text):
            raise UserError(f"--table: {file} has outcomes of {metric} that are no string of 0 and 1")
        length, other = lengths.setdefault((metric, examples), (len(text), file))
        if examples and length != len(text):
            raise UserError(
                f"--table: {file} has {len(text)} outcomes of {metric}, and {other} {length} over the same examples; "
                "evaluate both again"
            )
    return {metric: Outcomes(np.array([*text]) == "1", examples) for metric, text in texts.items()}


def _spreads(rows: Sequence[Row], column: Column) -> list[Spread | None]:
    """The intervals of a figure of each row, and the difference to the first row."""
    baseline, *others = (row.outcomes.get(column) for row in rows)
    return [spread(baseline, None) if baseline else None, *(spread(one, baseline) if one else None for one in others)]


def _first_figures(rows: Sequence[Row], bold: Callable[[str], str]) -> tuple[list[Column], list[list[str]]]:
    """The first figure of each evaluation of each row as text, and what they are of."""
    first: dict[tuple[str, str], Column] = {}
    for row in rows:
        for column in row.figures:
            first.setdefault((column.dataset, column.task), column)
    columns = list(first.values())
    cells = [[row.model] for row in rows]
    for column in columns:
        values = [row.figures.get(column) for row in rows]
        known = [value for value in values if value is not None]
        is_rank = column.metric.endswith("rank")
        # Figures are fractions or their differences, but for ranks and CIDEr.
        is_share = not is_rank and column.metric != "CIDEr" and all(-1 <= value <= 1 for value in known)
        # Of one model alone, each figure would be the best.
        best = (min if is_rank or column.metric.endswith("error") else max)(known) if known and len(rows) > 1 else None
        for line, value, around in zip(cells, values, _spreads(rows, column), strict=True):
            text = "-" if value is None else f"{100 * value:.1f}" if is_share else f"{value:.2f}"
            text = bold(text) if value is not None and value == best else text
            line.append(text + (_percentages(around) if around and is_share else ""))
    return columns, cells


def _heading(column: Column) -> str:
    return f"{column.dataset} {column.metric}"


def _percentages(around: Spread) -> str:
    """The intervals as they follow a percentage: " [62.1, 64.3]; +1.3 [0.2, 2.4] ≠ 0"."""
    low, high, *paired = (100 * value for value in around if value is not None)
    text = f" [{low:.1f}, {high:.1f}]"
    if paired:
        difference, low, high = paired
        text += f"; {difference:+.1f} [{low:.1f}, {high:.1f}]" + (" ≠ 0" if low > 0 or high < 0 else "")
    return text
