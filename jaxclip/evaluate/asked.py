"""The evaluations that a command line asks for: on a data set, on a suite of them, or those of the recipe."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip import evaluate
from jaxclip.errors import UserError
from jaxclip.evaluate import suites

_OF_DATA = ("task", "classes", "template", "name")
_INSTEAD = {"task": "give --tasks", "root": "give the folder as --data"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One evaluation.

    Attributes:
      name: of the data set in the results.
      file: of the result, without its suffix.
      config: as `config.evals` has it.
      metric: the figure that is quoted, of several their mean; the evaluation's own by default.
    """

    name: str
    file: str
    config: Mapping[str, Any]
    metric: tuple[str, ...] = ()


def on_data(arguments: argparse.Namespace, further: Sequence[str], task: str) -> list[Asked]:
    """What is asked for on --data.

    Args:
      arguments: those of the command.
      further: options that are keys of the task.
      task: of the model's method; empty if it has none.

    Raises:
      UserError: an option is wrong.
    """
    keys = {"classes": arguments.classes, "templates": tuple(arguments.template or ())}
    given = {key: value for key, value in keys.items() if value}
    if arguments.name and not evaluate.SAFE_NAME.fullmatch(arguments.name):
        raise UserError(f"--name={arguments.name!r} must be letters, digits and . _ -: it names the file of the result")
    stem = pathlib.Path(arguments.data).name.split(".")[0]
    name = arguments.name or re.sub(r"[^\w-]+", "_", stem).strip("_") or "data"
    task = arguments.task or ("zeroshot_classification" if given else task)
    if not task:
        raise UserError("the model's method has no evaluation of its own; give --task=NAME, a file of jaxclip/evaluate")
    types = evaluate.keys(task)
    # That there is no such task is said where it is looked for.
    options = {} if types is None else _options(further, {task: types})
    return [Asked(name, name, {"task": task, "data": arguments.data} | given | options)]


class OfSuite(NamedTuple):
    """What is asked for on a suite.

    Attributes:
      asked: the evaluations, those of one data set one after the other.
      missing: data sets that do not exist.
      broken: by their name, what is wrong with data sets that exist and cannot be opened.
    """

    asked: list[Asked]
    missing: dict[str, suites.DataSet]
    broken: dict[str, str]


def on_suite(arguments: argparse.Namespace, further: Sequence[str]) -> OfSuite:
    """What is asked for on --suite.

    Data sets that a task is not for have none of it: those without classes, or without images to learn from.

    Args:
      arguments: those of the command; --data is the folder that the sources of the suite start from.
      further: options that are keys of a task.

    Raises:
      UserError: an option is wrong, or the suite.
    """
    for key in (*_OF_DATA, "root"):
        if getattr(arguments, key) is not None:
            instead = f"; {_INSTEAD[key]}" if key in _INSTEAD else ""
            raise UserError(f"--{key} is for one data set, and not for --suite{instead}")
    sets = suites.read(arguments.suite)
    tasks = arguments.tasks.split(",") if arguments.tasks else []
    types: dict[str, dict[str, Any]] = {}
    for task in {*tasks, *(one.task for one in sets.values() if not tasks)}:
        of_task = evaluate.keys(task)
        if of_task is None:
            raise UserError(f"--tasks: {task!r} is not an evaluation; there must be a file jaxclip/evaluate/{task}.py")
        types[task] = of_task
    options = _options(further, types)
    found = OfSuite([], {}, {})
    for name, one in sets.items():
        for task in tasks or [one.task]:
            if not suites.suits(one, task, types[task]):
                continue
            try:
                config = suites.evaluation(one, task, types[task], options, arguments.data or "")
            except UserError as error:
                found.broken[name] = str(error)
                continue
            if config:
                file = name if task == one.task else f"{name}.{task}"
                found.asked.append(Asked(name, file, config, one.metric))
            else:
                found.missing[name] = one
    return found


def of_recipe(arguments: argparse.Namespace, further: Sequence[str], configs: Mapping[str, Any]) -> list[Asked]:
    """The evaluations of the recipe, `configs`.

    Raises:
      UserError: an option is for other data, or the recipe has no evaluations.
    """
    if any(getattr(arguments, key) is not None for key in _OF_DATA):
        raise UserError(
            "--task, --classes, --template and --name are for other data than the recipe's; give --data=SOURCE"
        )
    if further:
        raise UserError(f"{further[0]}: there is no such option, or it is one of a --task; give --data=SOURCE with it")
    if not configs:
        raise UserError(
            "there is no recipe that names evaluations; give --data=SOURCE, and --classes=FILE.json for zero-shot"
        )
    return [Asked(name, name, config) for name, config in configs.items()]


def _options(further: Sequence[str], types: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Keys of tasks that are given as --KEY=VALUE."""
    keys = {key: kind for of_task in types.values() for key, kind in of_task.items()}
    found = dict[str, Any]()
    for argument in further:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in keys:
            known = ", ".join(f"--{key}" for key in keys) or "none of its own"
            raise UserError(f"{argument} is no option; those of {', '.join(types)} are {known}, each with =VALUE")
        found[name] = value
        if keys[name] is not str:
            with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                found[name] = ast.literal_eval(value)
            if typing.get_origin(keys[name]) is tuple and not isinstance(found[name], tuple):
                found[name] = (found[name],)
    return found
