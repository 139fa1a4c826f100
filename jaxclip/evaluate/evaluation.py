"""Evaluations with their data open, and the JSON files of their results."""

from __future__ import annotations

import base64
import io
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxclip.data.findings import preflight
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.evaluator import Evaluator, Example, Result, task_of
from jaxclip.io import atomic_write
from jaxclip.parsing import to_dict


class Evaluation:
    """One evaluation, its data open, ready to run any number of times.

    Args:
      name: of the data set in the results.
      evaluator: what is measured.
      root: the folder that relative paths start from.
      where: the key that the data are from, for messages; config.evals.NAME.data by default.
      metric: the figure that is quoted, the first of the metrics by default; of several names, their mean.

    Attributes:
      task: the evaluator's name, such as zeroshot_retrieval.
      skips: records of the data that could not be read.

    Raises:
      UserError: the data, or something else that the evaluator needs, does not exist.
    """

    def __init__(self, name: str, evaluator: Evaluator, root: str = "", where: str = "", metric: tuple[str, ...] = ()):
        self.name = name
        self.evaluator = evaluator
        self.metric = metric
        self.task = task_of(evaluator)
        self.skips = SkipLog()
        where = where or f"config.evals.{name}.data"
        try:
            self.source = open_source(evaluator.data, root=root)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        try:
            self._prepared = evaluator.prepare(self.source, root)
        except UserError as error:
            raise UserError(f"config.evals.{name}.{error}") from None
        preflight(self.source, where, lambda record: evaluator.lacks(record, self._prepared))

    def run(self, encoder: Encoder, variables: Any) -> dict[str, Any]:
        """The result as its JSON file has it; every process has to take part.

        Raises:
          UserError: the data lacks what is evaluated.
        """
        try:
            result = self.evaluator.run(encoder, variables, self.source, self.skips, self._prepared)
        except UserError as error:
            raise UserError(f"config.evals.{self.name}: {error}") from None
        keys = {"dataset": self.name, "task": self.task, "language": "en", "data": self.evaluator.data}
        return keys | {"options": self.options} | _quoted(to_json(result), self.metric)

    @property
    def options(self) -> dict[str, Any]:
        """The evaluator's own keys as JSON values."""
        return {key: value for key, value in json.loads(json.dumps(to_dict(self.evaluator))).items() if key != "data"}


def run(
    evaluation: Evaluation, encoder: Encoder, variables: Any, place: pathlib.Path, model: Mapping[str, str]
) -> dict[str, Any]:
    """Runs an evaluation and writes its result.

    Args:
      evaluation: what to run.
      encoder: of the method.
      variables: of the model.
      place: the JSON file; only the first process writes it, and its folder if it does not exist.
      model: the keys `model` and `pretrained` of the result.

    Returns:
      What the file holds.
    """
    result = evaluation.run(encoder, variables) | dict(model)
    if jax.process_index() == 0:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            file.write((json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return result


def summary(result: Mapping[str, Any]) -> str:
    """The line that people quote of a result that `run` gave."""
    return f"{result['dataset']}: {result['summary']}"


def to_json(result: Result) -> dict[str, Any]:
    """A result as JSON values: CLIP_benchmark's keys, and what the report shows."""
    content = {"metrics": _finite(dict(result.metrics)), "summary": result.summary} | dict(result.further)
    if result.headline:
        content["headline"] = list(result.headline)
    if result.tables:
        content["tables"] = [_finite(to_dict(table)) for table in result.tables]
    if result.examples:
        content["examples"] = [_example(example) for example in result.examples]
    if result.outcomes:
        content["outcomes"] = {
            name: "".join("1" if one else "0" for one in right) for name, right in result.outcomes.items()
        }
        content["outcomes_of"] = result.outcomes_of
    return content


def _quoted(content: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A result with a figure before the others, the mean of those named, which probes have with the prefix lp_."""
    metrics = content["metrics"]
    for found in (names, tuple(f"lp_{name}" for name in names)):
        values = [metrics.get(name) for name in found]
        if not found or None in values or (len(found) == 1 and next(iter(metrics)) == found[0]):
            continue
        name, value = f"mean of {' and '.join(found)}" if len(found) > 1 else found[0], float(np.mean(values))
        content["metrics"] = {name: value} | metrics
        content["summary"] += f", {name} {value:.1%}"
    return content


def _finite(content: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _example(example: Example) -> dict[str, Any]:
    """An example as JSON values, its image as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(example.image).save(buffer, "WEBP", quality=80)
    url = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    parts = {"parts": [_example(part) for part in example.parts]} if example.parts else {}
    mark = {} if example.right is None else {"right": example.right}
    return {"image": url, "text": example.text} | mark | parts
