"""What a run left in its workdir, read with forgiveness: a killed run is reported as far as it came."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from jaxclip.errors import UserError

# CLIP_benchmark names recall by what is retrieved: "image_retrieval_recall@5" finds the picture of a caption.
DIRECTIONS = {"image_retrieval": "caption → picture", "text_retrieval": "picture → caption"}
RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of the model, as one of CLIP_benchmark's JSON files holds it.

    Attributes:
      step: the training step of the evaluated model.
      dataset: the set's name.
      task: "zeroshot_classification" or "zeroshot_retrieval".
      metrics: fractions by CLIP_benchmark's names ("acc1", "image_retrieval_recall@5"); finite ones only.
      classes: the names the model had to choose from, in the set's order; empty where unknown.
      class_accuracy: the accuracy of each class that has pictures, by the class's name.
    """

    step: int
    dataset: str
    task: str
    metrics: dict[str, float]
    classes: tuple[str, ...]
    class_accuracy: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's records.

    Attributes:
      name: the name of the workdir.
      config: the nested config, empty where there is none.
      rows: logged metrics by step, ascending, each with at least "step".
      evaluations: by step, ascending, then by dataset.
      notes: what could not be read, in words for the reader of the page.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluations: list[Evaluation]
    notes: list[str]

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps that logged a metric and its values, float64 [n] each; what is no finite number is NaN."""
        rows = [row for row in self.rows if key in row]
        steps = np.array([row["step"] for row in rows], dtype=np.float64)
        return steps, np.array([_number(row[key]) for row in rows], dtype=np.float64)

    def final_evaluations(self) -> list[Evaluation]:
        """The latest evaluation of each dataset and task, by name."""
        latest = {(evaluation.dataset, evaluation.task): evaluation for evaluation in self.evaluations}
        return [latest[key] for key in sorted(latest)]


def read_run(workdir: pathlib.Path) -> Run:
    """Reads the workdir of a run; missing files are empty parts, unreadable ones are noted.

    Raises:
      UserError: there is no folder of that name.
    """
    if not workdir.is_dir():
        raise UserError(f"no folder {workdir} to report on; name the workdir of a run")
    notes: list[str] = []
    config = _read_object(workdir, pathlib.Path("config.json"), notes) or {}
    rows = _read_metrics(workdir, notes)
    return Run(workdir.resolve().name, config, rows, _read_evaluations(workdir, notes), notes)


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


def _read_evaluations(workdir: pathlib.Path, notes: list[str]) -> list[Evaluation]:
    evaluations = []
    for path in (workdir / "evals").glob("*/*.json"):
        content = _read_object(workdir, path.relative_to(workdir), notes) if path.parent.name.isdecimal() else None
        if content is None:
            continue
        names = content.get("classnames")
        accuracy = _numbers(content.get("per_class_recall"))
        evaluations.append(
            Evaluation(
                step=int(path.parent.name),
                dataset=str(content.get("dataset", path.stem)),
                task=str(content.get("task", "")),
                metrics=_numbers(content.get("metrics")),
                classes=tuple(map(str, names)) if isinstance(names, list) else tuple(accuracy),
                class_accuracy=accuracy,
            )
        )
    return sorted(evaluations, key=lambda evaluation: (evaluation.step, evaluation.dataset, evaluation.task))


def _numbers(content: Any) -> dict[str, float]:
    items = content.items() if isinstance(content, dict) else ()
    return {str(key): _number(value) for key, value in items if math.isfinite(_number(value))}


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
