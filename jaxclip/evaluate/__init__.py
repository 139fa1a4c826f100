"""Evaluations: one module per task. `config.evals.NAME.task` is the module's name.

A module defines `Evaluator`, a frozen dataclass derived from `jaxclip.evaluate.Evaluator`, whose fields are the task's
keys in a config. Evaluations do not depend on the trainer, run on all devices and processes, and write CLIP_benchmark's
JSON.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from jaxclip.encoder import lacking
from jaxclip.errors import UserError
from jaxclip.evaluate.evaluation import Evaluation, run, summary
from jaxclip.evaluate.evaluator import Evaluator, Example, Result, Table, examples_digest, task_of
from jaxclip.evaluate.shared import SharedEncoder, weights_digest
from jaxclip.methods import Method
from jaxclip.parsing import parse

__all__ = [
    "Evaluation",
    "Evaluator",
    "Example",
    "Result",
    "SharedEncoder",
    "Table",
    "check",
    "examples_digest",
    "from_config",
    "keys",
    "needed",
    "run",
    "summary",
    "weights_digest",
]


# Of an evaluation, and so of a file.
SAFE_NAME = re.compile(r"\w[\w.-]*")


def from_config(evals: Mapping[str, Mapping[str, Any]]) -> dict[str, Evaluator]:
    """The evaluators of `config.evals`, by name. Nothing is opened yet.

    Raises:
      UserError: there is no such task, a key is wrong, or a name is none for a file; the message names
        config.evals.NAME.KEY.
    """
    seen = set()
    for name in evals:
        # Some file systems do not tell capitals from small letters.
        if not SAFE_NAME.fullmatch(name) or name.lower() in seen:
            raise UserError(
                f"config.evals.{name}: the name of an evaluation names the file of its results; use letters, digits, "
                "- _ and . and no name twice"
            )
        seen.add(name.lower())
    return {name: _evaluator(f"config.evals.{name}", keys) for name, keys in evals.items()}


def keys(task: str) -> dict[str, Any] | None:
    """The types of a task's own keys; None if there is no such task."""
    kind = _kind(task) if task.isidentifier() else None
    if kind is None:
        return None
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name != "data"}


def needed(evaluations: Iterable[Evaluation]) -> set[str]:
    """The functions of the model that evaluations ask for."""
    return {name for evaluation in evaluations for name in evaluation.evaluator.needs}


def check(evaluators: Mapping[str, Evaluator], method: Method) -> None:
    """Checks that a method's model has the functions that evaluations need.

    Raises:
      UserError: it lacks one; the message names the first evaluation concerned.
    """
    for name, evaluator in evaluators.items():
        reason = lacking(method, evaluator.needs)
        if reason:
            raise UserError(f"config.evals.{name}.task={task_of(evaluator)} {reason}; choose another task or remove it")


def _evaluator(where: str, config: Mapping[str, Any]) -> Evaluator:
    keys = dict(config.items())
    if "task" not in keys:
        raise UserError(f"{where}.task is missing")
    task = keys.pop("task")
    if task == "zeroshot_retrieval" and keys.get("classes") == "" and "templates" in keys:
        # Checkpoints from before tasks had keys of their own hold those of classification, too.
        keys = {key: value for key, value in keys.items() if key not in ("classes", "templates")}
    kind = _kind(task) if isinstance(task, str) and task.isidentifier() else None
    if kind is None:
        known = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "__main__"]
        near = difflib.get_close_matches(str(task), filter(_kind, known), 1)
        hint = f"did you mean {near[0]}?" if near else f"there must be a file jaxclip/evaluate/{task}.py"
        raise UserError(f"{where}.task={task!r} is not an evaluation; {hint}")
    return parse(kind, keys, where)


def _kind(task: str) -> type[Evaluator] | None:
    """The class that a module of this folder defines; None if there is no such module or it defines none."""
    if importlib.util.find_spec(f"{__name__}.{task}") is None:
        return None
    kind = getattr(importlib.import_module(f"{__name__}.{task}"), "Evaluator", None)
    return None if kind is Evaluator else kind
