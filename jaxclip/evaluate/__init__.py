"""Evaluations: they know nothing of the trainer, run on every device and process, and write CLIP_benchmark's JSON."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxclip.config import EvaluationConfig
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.data.storage import resolve
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.retrieval import retrieve
from jaxclip.evaluate.zero_shot import classify


class Evaluation:
    """One evaluation, its source open and its classes read, ready to run any number of times.

    Raises:
      UserError: the data or the classes are not there.
    """

    def __init__(self, name: str, config: EvaluationConfig, root: str):
        self.name = name
        self.config = config
        self.source: Source = open_source(config.data, root=root)
        self.classes: Sequence[str] | None = None
        self.skips = SkipLog()
        if config.task == "zeroshot_classification":
            self.classes = _classes(name, config, self.source, root)

    def run(self, encoder: Encoder, params: Any) -> dict[str, Any]:
        """The result, in CLIP_benchmark's form."""
        embedded = encoder.source(params, self.source, self.skips)
        result: dict[str, Any] = {"dataset": self.name, "task": self.config.task, "language": "en"}
        if self.classes is None:
            result["metrics"] = retrieve(encoder, params, embedded, self.name)
        else:
            metrics, per_class = classify(encoder, params, embedded, self.classes, self.config.templates, self.name)
            result |= {"metrics": metrics, "per_class_recall": per_class, "classnames": list(self.classes)}
            result["templates"] = list(self.config.templates)
        return result


def run_all(
    evaluations: Sequence[Evaluation], encoder: Encoder, params: Any, folder: pathlib.Path, model: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Runs evaluations one after the other and writes one JSON file each into `folder`.

    Args:
      evaluations: what to run.
      encoder, params: the model.
      folder: made where it is missing; only the first process writes.
      model: the keys `model` and `pretrained` of the results.
    """
    results = []
    for evaluation in evaluations:
        result = evaluation.run(encoder, params) | dict(model)
        results.append(result)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{evaluation.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return results


def summary(result: Mapping[str, Any]) -> str:
    """One line on a result: the figures people quote."""
    metrics = result["metrics"]
    if "acc1" in metrics:
        return f"{result['dataset']}: zero-shot accuracy {metrics['acc1']:.1%} ({len(result['classnames'])} classes)"
    parts = [
        f"{name} R@1/5/10 " + "/".join(f"{100 * metrics[f'{key}@{k}']:.1f}" for k in (1, 5, 10))
        for name, key in (("text to picture", "image_retrieval_recall"), ("picture to text", "text_retrieval_recall"))
    ]
    return f"{result['dataset']}: {', '.join(parts)}"


def _classes(name: str, config: EvaluationConfig, source: Source, root: str) -> Sequence[str]:
    if not config.classes:
        if source.class_names:
            return source.class_names
        raise UserError(
            f"evals.{name}: {config.data} does not say its class names; give evals.{name}.classes=FILE.json"
        )
    path = pathlib.Path(resolve(config.classes, root))
    try:
        classes = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"evals.{name}.classes: no file {path}; it holds a JSON list of the class names") from None
    except ValueError as error:
        raise UserError(f"evals.{name}.classes: {path} is not JSON ({error})") from None
    if not isinstance(classes, list) or not classes or not all(isinstance(item, str) for item in classes):
        raise UserError(f"evals.{name}.classes: {path} must hold a list of class names")
    return classes
