"""python -m jaxclip.evaluate PATH: evaluates a trained model, by its own recipe or on data named here."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
import pathlib
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.errors import UserError
from jaxclip.evaluate import Evaluation, table
from jaxclip.exit_status import run_command
from jaxclip.paths import local
from jaxclip.progress import phase
from jaxclip.weights.overrides import add_flags, from_flags


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.evaluate",
        description=__doc__,
        allow_abbrev=False,
        epilog="Further options are the keys of the --task, such as --train=SOURCE --shots=1,4,16 of linear_probe.",
    )
    parser.add_argument(
        "path", nargs="?", help="a run's workdir or checkpoint, or public weights, as jaxclip.load opens"
    )
    parser.add_argument("--step", type=int, help="which checkpoint of a run (default: the newest)")
    parser.add_argument("--data", help="the source to evaluate on, such as val-00000.tar (default: the recipe's)")
    parser.add_argument(
        "--task", help="what to measure on --data: a module of jaxclip.evaluate (default: the method's)"
    )
    parser.add_argument("--classes", help="JSON list or .txt of class names: zero-shot classification on --data")
    parser.add_argument("--template", action="append", help="a phrase with {c} for the class; may be given again")
    parser.add_argument("--name", help="name of the result (default: that of --data)")
    parser.add_argument("--root", help="the folder that relative paths start from (default: the recipe's)")
    parser.add_argument(
        "--output", help="folder for the results (default: evals/STEP in the workdir, or evals/NAME here)"
    )
    parser.add_argument(
        "--table", nargs="+", metavar="DIR", help="no evaluation, but a table of the results in workdirs or folders"
    )
    parser.add_argument("--form", choices=table.FORMS, default="markdown", help="of --table (default: markdown)")
    add_flags(parser)
    arguments, further = parser.parse_known_args(argv)
    return run_command(lambda _: _table(arguments, further) if arguments.table else _evaluate(arguments, further))


def _table(arguments: argparse.Namespace, further: list[str]) -> None:
    if further:
        raise UserError(f"{further[0]} is no option of --table")
    for key in ("path", "step", "data", "task", "classes", "template", "name", "root", "output"):
        if getattr(arguments, key) is not None:
            flag = "PATH" if key == "path" else f"--{key}"
            raise UserError(f"{flag} is for an evaluation, and not for --table")
    rows = table.read([local(folder, "--table") for folder in arguments.table])
    print(table.FORMS[arguments.form](rows), end="")


def _evaluate(arguments: argparse.Namespace, further: list[str]) -> None:
    from jaxclip import model

    if arguments.path is None:
        raise UserError("give the PATH of a model, such as runs/demo, or --table with folders of results")
    wrong = next((item for item in further if not re.fullmatch(r"--\w+=.*", item, re.DOTALL)), None)
    if wrong is not None:
        raise UserError(f"{wrong}: there is no such option; those of a --task are written --KEY=VALUE")
    answers = dataclasses.asdict(from_flags(arguments))
    loaded = model.load(arguments.path, step=arguments.step, batch_size=256, **answers)
    task = loaded.method.task
    configs = _asked(arguments, further, task) or (loaded.config.evaluations(task) if loaded.config else {})
    if not configs:
        raise UserError(
            "there is no recipe that names evaluations; give --data=SOURCE, and --classes=FILE.json for zero-shot"
        )
    with _named_as_given(configs if arguments.data else {}):
        _run(arguments, loaded, configs)


@contextlib.contextmanager
def _named_as_given(asked: Mapping[str, Any]) -> Iterator[None]:
    """Makes errors name options where they would name the keys of a recipe that the person has not written."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for name in asked:
            message = message.replace(f"config.evals.{name}.", "--").replace(f"config.evals.{name}: ", "")
        raise UserError(message) from None


def _run(arguments: argparse.Namespace, loaded: Any, configs: Mapping[str, Mapping[str, Any]]) -> None:
    from jaxclip import checkpoint, evaluate, methods

    evaluators = evaluate.from_config(configs)
    evaluate.check(evaluators, loaded.method)
    root = arguments.root or ""
    if arguments.root is None and loaded.config and not arguments.data:
        root = loaded.config.data.root
    where = "--data" if arguments.data else ""
    with phase("opening the data"):
        evaluations = [evaluate.Evaluation(name, evaluator, root, where) for name, evaluator in evaluators.items()]
    encoder, variables = loaded.evaluation_parts()
    path = local(arguments.path, "PATH")
    output, pretrained = _names(path, checkpoint.find(path, arguments.step))
    output = local(arguments.output, "--output") if arguments.output else output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}; name a folder that can be written") from None
    for evaluation in evaluations:
        _check_free(output / f"{evaluation.name}.json", evaluation)
    names = {"model": methods.to_config(loaded.method)["name"], "pretrained": pretrained}
    for number, evaluation in enumerate(evaluations, 1):
        with phase(f"evaluating {number} of {len(evaluations)}: {evaluation.name}"):
            (result,) = evaluate.run_all([evaluation], encoder, variables, output, names)
        print(evaluate.summary(result), flush=True)
    for evaluation in evaluations:
        if evaluation.skips.total:
            print(f"{evaluation.name}: skipped {evaluation.skips.total} records: {evaluation.skips}", file=sys.stderr)
    print(f"results: {output.absolute()}")


def _asked(arguments: argparse.Namespace, further: list[str], task: str) -> dict[str, dict[str, Any]]:
    """The evaluation that the command line asks for, as a recipe writes it; empty for those of the recipe itself."""
    from jaxclip import evaluate

    keys = {"classes": arguments.classes, "templates": tuple(arguments.template or ())}
    given = {key: value for key, value in keys.items() if value}
    if not arguments.data:
        if given or arguments.task or arguments.name:
            raise UserError(
                "--task, --classes, --template and --name are for other data than the recipe's; give --data=SOURCE"
            )
        if further:
            raise UserError(
                f"{further[0]}: there is no such option, or it is one of a --task; give --data=SOURCE with it"
            )
        return {}
    if arguments.name and not evaluate.SAFE_NAME.fullmatch(arguments.name):
        raise UserError(f"--name={arguments.name!r} must be letters, digits and . _ -: it names the file of the result")
    stem = pathlib.Path(arguments.data).name.split(".")[0]
    name = arguments.name or re.sub(r"[^\w-]+", "_", stem).strip("_") or "data"
    task = arguments.task or ("zeroshot_classification" if given else task)
    if not task:
        raise UserError("the model's method has no evaluation of its own; give --task=NAME, a file of jaxclip/evaluate")
    return {name: {"task": task, "data": arguments.data} | given | _keys(further, task)}


def _keys(further: list[str], task: str) -> dict[str, Any]:
    """A task's own keys, given as --KEY=VALUE."""
    from jaxclip import evaluate

    keys, found = evaluate.keys(task), dict[str, Any]()
    if keys is None:  # which is said where the task is looked for
        return {}
    for argument in further:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in keys:
            known = ", ".join(f"--{key}" for key in keys) or "none of its own"
            raise UserError(f"{argument} is no option; those of {task} are {known}, each with =VALUE")
        found[name] = value
        if keys[name] is not str:
            with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                found[name] = ast.literal_eval(value)
            if typing.get_origin(keys[name]) is tuple and not isinstance(found[name], tuple):
                found[name] = (found[name],)
    return found


def _check_free(place: pathlib.Path, evaluation: Evaluation) -> None:
    """Raises UserError if a file holds the result of another evaluation, which would be lost."""
    try:
        held = json.loads(place.read_text())
        before = held["task"], held["data"], held.get("options", evaluation.options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if before != (evaluation.task, evaluation.evaluator.data, evaluation.options):
        changed = "" if before[:2] != (evaluation.task, evaluation.evaluator.data) else " with other options"
        raise UserError(
            f"{place} is the result of {before[0]} on {before[1]}{changed}; give another --name or --output"
        )


def _names(path: pathlib.Path, checkpoint: pathlib.Path | None) -> tuple[pathlib.Path, str]:
    """The default folder of the results, and the name of the weights in them."""
    if checkpoint is None or not checkpoint.name.isdigit():  # public weights, or converted ones
        return pathlib.Path("evals") / path.absolute().name, path.absolute().name
    workdir = checkpoint.absolute().parent.parent
    return workdir / "evals" / checkpoint.name, f"{workdir.name}@{checkpoint.name}"


if __name__ == "__main__":
    sys.exit(main())
