"""python -m jaxclip.evaluate PATH: evaluates a trained model, by its own recipe or on data named here."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip import processes
from jaxclip.errors import UserError
from jaxclip.evaluate import Evaluation, asked, robustness, suites, table
from jaxclip.evaluate.asked import Asked
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
    parser.add_argument(
        "--classes",
        help="JSON list or .txt of class names, or a known list such as imagenet: zero-shot classification on --data",
    )
    parser.add_argument("--template", action="append", help="a phrase with {c} for the class; may be given again")
    parser.add_argument("--name", help="name of the result (default: that of --data)")
    parser.add_argument(
        "--suite",
        help=f"data sets to evaluate on, below the folder --data: {', '.join(suites.known())}, or a FILE.toml",
    )
    parser.add_argument(
        "--tasks", help="of --suite, such as zeroshot_classification,linear_probe (default: the suite's)"
    )
    parser.add_argument(
        "--keep-embeddings", action="store_true", help="keep what images give in the cache, for evaluations to come"
    )
    parser.add_argument(
        "--distributed", action="store_true", help="join several processes, as jaxclip.main does (default on TPU pods)"
    )
    parser.add_argument("--root", help="the folder that relative paths start from (default: the recipe's)")
    parser.add_argument(
        "--output", help="folder for the results (default: evals/STEP in the workdir, or evals/NAME here)"
    )
    parser.add_argument(
        "--table", nargs="+", metavar="DIR", help="no evaluation, but a table of the results in workdirs or folders"
    )
    parser.add_argument("--form", choices=table.FORMS, default="markdown", help="of --table (default: markdown)")
    parser.add_argument(
        "--intervals", action="store_true", help="of --table: 95%% intervals, and the differences to the first model"
    )
    parser.add_argument(
        "--robustness",
        metavar="FILE.csv",
        help="of --table: the effective robustness over reference models: model,IN_DISTRIBUTION,SHIFTED,...",
    )
    add_flags(parser)
    arguments, further = parser.parse_known_args(argv)
    return run_command(lambda _: _table(arguments, further) if arguments.table else _evaluate(arguments, further))


def _table(arguments: argparse.Namespace, further: list[str]) -> None:
    if further:
        raise UserError(f"{further[0]} is no option of --table")
    for key in ("path", "step", "data", "task", "classes", "template", "name", "root", "output", "suite", "tasks"):
        if getattr(arguments, key) is not None:
            flag = "PATH" if key == "path" else f"--{key}"
            raise UserError(f"{flag} is for an evaluation, and not for --table")
    for key in ("keep_embeddings", "distributed"):
        if getattr(arguments, key):
            raise UserError(f"--{key.replace('_', '-')} is for an evaluation, and not for --table")
    rows = table.read([local(folder, "--table") for folder in arguments.table], arguments.intervals)
    if arguments.robustness:
        rows = robustness.with_robustness(rows, robustness.read(local(arguments.robustness, "--robustness")))
    print(table.FORMS[arguments.form](rows), end="")


def _evaluate(arguments: argparse.Namespace, further: list[str]) -> None:
    from jaxclip import model

    if arguments.robustness:
        raise UserError("--robustness is for --table")
    if arguments.path is None:
        raise UserError("give the PATH of a model, such as runs/demo, or --table with folders of results")
    if arguments.intervals:
        raise UserError("--intervals is for --table, and not for an evaluation")
    wrong = next((item for item in further if not re.fullmatch(r"--\w+=.*", item, re.DOTALL)), None)
    if wrong is not None:
        raise UserError(f"{wrong}: there is no such option; those of a --task are written --KEY=VALUE")
    if arguments.tasks and not arguments.suite:
        raise UserError("--tasks is for a --suite; give --task for one data set")
    if processes.join(arguments.distributed) and not processes.is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # The first one prints what all of them know.
    jobs, broken = _of_suite(arguments, further) if arguments.suite else ([], 0)
    loaded = model.load(
        arguments.path, step=arguments.step, batch_size=256, **dataclasses.asdict(from_flags(arguments))
    )
    task = loaded.method.task
    if not jobs and arguments.data:
        jobs = asked.on_data(arguments, further, task)
    elif not jobs:
        jobs = asked.of_recipe(arguments, further, loaded.config.evaluations(task) if loaded.config else {})
    failed = broken + _run(arguments, loaded, jobs)
    if failed:
        raise UserError(f"{failed} of {broken + len(jobs)} evaluations failed")


def _of_suite(arguments: argparse.Namespace, further: list[str]) -> tuple[list[Asked], int]:
    """The evaluations of --suite, and how many of its data sets are broken; says what is missing."""
    found = asked.on_suite(arguments, further)
    for name, one in found.missing.items():
        print(f"{name} is not here: {' and '.join(one.data)}", file=sys.stderr)
    if found.missing:
        print("docs/evaluation.md says how to get them; the others are evaluated", file=sys.stderr)
    for name, reason in found.broken.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    if not found.asked:
        raise UserError(f"--suite={arguments.suite}: nothing to evaluate below {arguments.data or 'this folder'}")
    return found.asked, len(found.broken)


def _run(arguments: argparse.Namespace, loaded: Any, jobs: Sequence[Asked]) -> int:
    """Runs evaluations; returns how many of a suite failed."""
    from jaxclip import checkpoint, evaluate, methods
    from jaxclip.data.storage import cache_folder, is_remote
    from jaxclip.encoder import gather

    own = not (arguments.data or arguments.suite)
    try:
        evaluators = evaluate.from_config({job.file: job.config for job in jobs})
        evaluate.check(evaluators, loaded.method)
    except UserError as error:
        raise UserError(_said(error, jobs, own)) from None
    root = (arguments.data if arguments.suite else arguments.root) or ""
    if own and arguments.root is None and loaded.config:
        root = loaded.config.data.root
    where = "" if own else "--data"
    path = local(arguments.path, "PATH")
    output, pretrained = _names(path, checkpoint.find(path, arguments.step))
    output = local(arguments.output, "--output") if arguments.output else output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}; name a folder that can be written") from None
    failed = 0

    def spared(error: UserError, job: Asked) -> int:
        """Says why an evaluation of a suite failed, of which the rest goes on; alone, it is the end."""
        said = _said(error, [job], own)
        if not arguments.suite:
            raise UserError(said) from None
        print(f"error: {job.file}: {said}", file=sys.stderr)
        return 1

    opened: list[tuple[Asked, Evaluation]] = []
    with phase("opening the data"):
        for job in jobs:
            try:
                evaluation = Evaluation(job.name, evaluators[job.file], root, where, job.metric)
                _check_free(output / f"{job.file}.json", evaluation)
            except UserError as error:
                failed += spared(error, job)
            else:
                opened.append((job, evaluation))
    encoder, variables = loaded.evaluation_parts()
    kept = cache_folder("embeddings") if arguments.keep_embeddings else None
    weights, kind = evaluate.weights_digest(variables), methods.to_config(loaded.method)["name"]
    # By these an evaluation is known to be the same when a suite goes on.
    same = {"weights": weights, "root": root if is_remote(root) else str(pathlib.Path(root).absolute())}
    names = {"model": kind, "pretrained": pretrained} | same
    numbers = itertools.count(1)
    # What images give is held for the tasks of one data set, and not for those of all.
    for _, group in itertools.groupby(opened, lambda pair: pair[0].name if arguments.suite else ""):
        tasks = list(group)
        shared = evaluate.SharedEncoder(encoder, variables, evaluate.needed([one for _, one in tasks]), kept, True)
        for job, evaluation in tasks:
            place, number = output / f"{job.file}.json", next(numbers)
            held = _measured(place, evaluation, same) if arguments.suite else None
            try:
                # As the first process finds it, which writes the files.
                if gather(held is not None)[0]:
                    result = held or {"dataset": job.name, "summary": "measured before"}
                else:
                    with phase(f"evaluating {number} of {len(opened)}: {job.file}"):
                        result = evaluate.run(evaluation, shared, variables, place, names)
                print(evaluate.summary(result), flush=True)
            except UserError as error:
                failed += spared(error, job)
            if evaluation.skips.total:
                print(f"{job.file}: skipped {evaluation.skips.total} records: {evaluation.skips}", file=sys.stderr)
    print(f"results: {output.absolute()}")
    return failed


def _said(error: UserError, jobs: Sequence[Asked], own: bool) -> str:
    """A message that names options where it would name the keys of a recipe that the person has not written."""
    message = str(error)
    for job in () if own else jobs:
        for name in (job.name, job.file):
            message = message.replace(f"config.evals.{name}.", "--").replace(f"config.evals.{name}: ", "")
    return message


def _check_free(place: pathlib.Path, evaluation: Evaluation) -> None:
    """Raises UserError if a file holds the result of another evaluation, which would be lost."""
    held = _held(place)
    if held is None:
        return
    before = held["task"], held["data"], held.get("options", evaluation.options)
    if before != (evaluation.task, evaluation.evaluator.data, evaluation.options):
        changed = "" if before[:2] != (evaluation.task, evaluation.evaluator.data) else " with other options"
        raise UserError(
            f"{place} is the result of {before[0]} on {before[1]}{changed}; give another --output, or for one data "
            "set another --name"
        )


def _measured(place: pathlib.Path, evaluation: Evaluation, same: Mapping[str, str]) -> dict[str, Any] | None:
    """The result of the very evaluation of the very weights and data, if a suite that was stopped had come so far."""
    held = _held(place)
    if held is None or held.get("options") != evaluation.options or any(held.get(key) != same[key] for key in same):
        return None
    return held if isinstance(held.get("summary"), str) else None


def _held(place: pathlib.Path) -> dict[str, Any] | None:
    """What the file of a result holds; None if there is none, or no result in it."""
    try:
        held = json.loads(place.read_text())
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and {"task", "data", "dataset"} <= held.keys() else None


def _names(path: pathlib.Path, checkpoint: pathlib.Path | None) -> tuple[pathlib.Path, str]:
    """The default folder of the results, and the name of the weights in them."""
    if checkpoint is None or not checkpoint.name.isdigit():  # public weights, or converted ones
        return pathlib.Path("evals") / path.absolute().name, path.absolute().name
    workdir = checkpoint.absolute().parent.parent
    return workdir / "evals" / checkpoint.name, f"{workdir.name}@{checkpoint.name}"


if __name__ == "__main__":
    sys.exit(main())
