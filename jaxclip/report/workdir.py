"""The records of a run in its workdir, read tolerantly: a killed run is reported up to its last complete record."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from jaxclip.errors import UserError
from jaxclip.evaluate.evaluator import Table
from jaxclip.report.writing import title_of


@dataclasses.dataclass(frozen=True)
class ShownExample:
    """An image with a text.

    Attributes:
      image: its data URL.
      text: what stands under it.
      parts: smaller ones beside it.
      right: whether the model's answer is right; None if that is not asked.
    """

    image: str
    text: str
    parts: tuple[ShownExample, ...] = ()
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation of the model, as its JSON file has it.

    Attributes:
      step: the training step of the evaluated model.
      dataset: the set's name.
      task: such as "zeroshot_retrieval".
      data: the source that was evaluated; empty if unknown.
      metrics: figures by name; finite ones only.
      headline: the figure of the card and the words under it; by default the first metric.
      tables: of the evaluator; by default one of the metrics.
      examples: images with the model's texts.
      classes: the names the model had to choose from, in the set's order; empty if unknown.
      class_accuracy: the accuracy of each class that has images, by the class's name.
      fewer_images: accuracies of a probe of fewer images, one for each time that these were drawn, by how many they
        were: "4shot" of each class, or "10%" of all.
    """

    step: int
    dataset: str
    task: str
    data: str
    metrics: dict[str, float]
    headline: tuple[str, str] | None
    tables: tuple[Table, ...]
    examples: tuple[ShownExample, ...]
    classes: tuple[str, ...]
    class_accuracy: dict[str, float]
    fewer_images: dict[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run's records.

    Attributes:
      name: the name of the workdir.
      config: the nested config, empty if there is none.
      rows: logged metrics by step, ascending, each with at least "step".
      evaluations: by step, ascending, then by dataset.
      notes: what could not be read, in words for the reader of the page.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluations: list[EvaluationRecord]
    notes: list[str]

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps that logged a metric and its values, float64 [n] each; NaN for what is not a finite number."""
        rows = [row for row in self.rows if key in row]
        steps = np.array([row["step"] for row in rows], dtype=np.float64)
        return steps, np.array([_number(row[key]) for row in rows], dtype=np.float64)

    def final_evaluations(self) -> list[EvaluationRecord]:
        """The latest evaluation of each dataset and task, by name."""
        latest = {(evaluation.dataset, evaluation.task): evaluation for evaluation in self.evaluations}
        return [latest[key] for key in sorted(latest)]


def read_run(workdir: pathlib.Path) -> RunRecord:
    """Reads the workdir of a run; missing files are empty parts, unreadable ones are noted.

    Raises:
      UserError: there is no folder of that name.
    """
    if not workdir.is_dir():
        raise UserError(f"no folder {workdir} to report on; name the workdir of a run")
    notes: list[str] = []
    config = _read_object(workdir, pathlib.Path("config.json"), notes) or {}
    rows = _read_metrics(workdir, notes)
    return RunRecord(workdir.resolve().name, config, rows, _read_evaluations(workdir, notes), notes)


def _read_object(workdir: pathlib.Path, name: pathlib.Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        content = json.loads((workdir / name).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        notes.append(f"{name} is not a JSON object and was left out.")
        return None
    return content


def _read_metrics(workdir: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, TypeError, KeyError, OverflowError):
            unreadable += 1
            continue
        by_step.setdefault(step, {}).update(row, step=step)
    if unreadable:
        lines = "One line" if unreadable == 1 else f"{unreadable} lines"
        notes.append(f"{lines} of metrics.jsonl could not be read (a killed run cuts its last line off).")
    return [by_step[step] for step in sorted(by_step)]


def _read_evaluations(workdir: pathlib.Path, notes: list[str]) -> list[EvaluationRecord]:
    evaluations = []
    for path in (workdir / "evals").glob("*/*.json"):
        content = _read_object(workdir, path.relative_to(workdir), notes) if path.parent.name.isdecimal() else None
        if content is not None:
            evaluations.append(_evaluation(int(path.parent.name), path.stem, content))
    return sorted(evaluations, key=lambda evaluation: (evaluation.step, evaluation.dataset, evaluation.task))


def _evaluation(step: int, name: str, content: dict[str, Any]) -> EvaluationRecord:
    task, metrics = str(content.get("task", "")), _numbers(content.get("metrics"))
    accuracy = _numbers(content.get("per_class_recall"))
    tables = tuple(filter(None, map(_table, _list(content.get("tables")))))
    if not tables and metrics:
        columns = tuple(map(title_of, metrics))
        tables = (Table(title_of(task).capitalize(), columns, {"": tuple(metrics.values())}),)
    headline = [str(part) for part in _list(content.get("headline"))]
    return EvaluationRecord(
        step=step,
        dataset=str(content.get("dataset", name)),
        task=task,
        data=str(content.get("data", "")),
        metrics=metrics,
        headline=(headline[0], headline[1]) if len(headline) == 2 else None,
        tables=tables,
        examples=_examples(content.get("examples")),
        classes=tuple(map(str, _list(content.get("classnames")))) or tuple(accuracy),
        class_accuracy=accuracy,
        fewer_images=_drawn(content.get("fewer_images")),
    )


def _table(content: Any) -> Table | None:
    """A table of a JSON file; None if it is not one."""
    if not isinstance(content, dict) or not isinstance(content.get("rows"), dict):
        return None
    columns = tuple(map(str, _list(content.get("columns"))))
    rows = {str(name): tuple(map(_cell, _list(cells))) for name, cells in content["rows"].items()}
    if not columns or any(len(cells) != len(columns) for cells in rows.values()):
        return None
    return Table(str(content.get("title", "")), columns, rows, content.get("fractions") is True)


def _cell(value: Any) -> float | int | str | None:
    # Counts stay whole numbers, which are not drawn.
    if value is None or isinstance(value, str) or type(value) is int:
        return value
    number = _number(value)
    return number if math.isfinite(number) else None


def _examples(content: Any, parts: bool = True) -> tuple[ShownExample, ...]:
    """The examples of a JSON file whose images are data URLs of one."""
    found = []
    for item in _list(content):
        image = item.get("image") if isinstance(item, dict) else None
        if isinstance(image, str) and _IMAGE.fullmatch(image):
            within = _examples(item.get("parts"), parts=False) if parts else ()
            right = item["right"] if isinstance(item.get("right"), bool) else None
            found.append(ShownExample(image, str(item.get("text", "")), within, right))
    return tuple(found)


_IMAGE = re.compile(r"data:image/webp;base64,[A-Za-z0-9+/=]+")


def _drawn(content: Any) -> dict[str, tuple[float, ...]]:
    """Lists of finite numbers by name."""
    items = content.items() if isinstance(content, dict) else ()
    lists = {str(name): tuple(map(_number, _list(values))) for name, values in items}
    return {name: values for name, values in lists.items() if values and all(map(math.isfinite, values))}


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def _numbers(content: Any) -> dict[str, float]:
    items = content.items() if isinstance(content, dict) else ()
    return {str(key): _number(value) for key, value in items if math.isfinite(_number(value))}


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
