"""Tables of results: a row for each model, a column for each data set."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.errors import UserError


class Column(NamedTuple):
    """One figure of one data set."""

    dataset: str
    task: str
    metric: str


class Row(NamedTuple):
    """The figures of one model; those that do not exist are None."""

    model: str
    figures: Mapping[Column, float | None]


def read(folders: Sequence[pathlib.Path]) -> list[Row]:
    """The results in folders, in CLIP_benchmark's JSON form, ours or another program's.

    Args:
      folders: each a run's workdir, of which the last evaluation is taken, or a folder of JSON files.

    Raises:
      UserError: a folder has no results, or a file is none.
    """
    models: dict[str, dict[Column, float | None]] = {}
    for folder in folders:
        here: dict[str, dict[Column, float | None]] = {}
        files = sorted(_latest(folder).glob("*.json"))
        if not files:
            raise UserError(
                f"--table: {folder} has no results; give a run's workdir or a folder of jaxclip.evaluate's JSON files"
            )
        for file in files:
            result = _result(file)
            figures = here.setdefault(f"{result['model']} {result['pretrained']}", {})
            language = result.get("language", "en")
            dataset = result["dataset"] + ("" if language == "en" else f" ({language})")
            for metric, value in result["metrics"].items():
                known = value is not None and math.isfinite(value)
                figures[Column(dataset, result["task"], metric)] = value if known else None
        for model, figures in here.items():
            before = models.get(model, {})
            # Runs of one name in different folders are different models.
            differs = any(before[column] != value for column, value in figures.items() if column in before)
            models.setdefault(f"{model} in {folder}" if differs else model, {}).update(figures)
    return [Row(model, figures) for model, figures in models.items()]


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure, with all its digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", *(f"{column.dataset}/{column.task}/{column.metric}" for column in columns)])
    for row in rows:
        writer.writerow([row.model, *(row.figures.get(column) for column in columns)])
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
        [Row(html.escape(row.model), row.figures) for row in rows], lambda text: f"<b>{text}</b>"
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
        # Figures are fractions, but for ranks and CIDEr.
        is_share = not is_rank and column.metric != "CIDEr" and all(0 <= value <= 1 for value in known)
        # Of one model alone, each figure would be the best.
        best = (min if is_rank or column.metric.endswith("error") else max)(known) if known and len(rows) > 1 else None
        for line, value in zip(cells, values, strict=True):
            text = "-" if value is None else f"{100 * value:.1f}" if is_share else f"{value:.2f}"
            line.append(bold(text) if value is not None and value == best else text)
    return columns, cells


def _heading(column: Column) -> str:
    return f"{column.dataset} {column.metric}"
