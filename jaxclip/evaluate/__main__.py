"""python -m jaxclip.evaluate PATH: evaluates a trained model, by its own recipe or on data named here."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

from jaxclip.config import EvaluationConfig
from jaxclip.errors import UserError
from jaxclip.weights.overrides import add_flags, from_flags


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.evaluate", description=__doc__)
    parser.add_argument("path", help="a run's workdir or checkpoint, or public weights, as jaxclip.load opens")
    parser.add_argument("--data", help="the source to evaluate on, such as val-00000.tar (default: the recipe's)")
    parser.add_argument("--classes", default="", help="JSON list of class names: zero-shot classification on --data")
    parser.add_argument("--template", action="append", help="a phrase with {c} for the class; may be given again")
    parser.add_argument("--name", help="name of the result (default: that of --data)")
    parser.add_argument("--root", help="the folder that relative paths start from (default: the recipe's)")
    parser.add_argument(
        "--output", help="folder for the results (default: evals/STEP in the workdir, or evals/NAME here)"
    )
    add_flags(parser)
    arguments = parser.parse_args(argv)
    try:
        _evaluate(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    from jaxclip import checkpoint, evaluate, methods, model

    answers = dataclasses.asdict(from_flags(arguments))
    loaded = model.load(arguments.path, batch_size=256, **answers)
    folder = checkpoint.find(pathlib.Path(arguments.path))
    configs = dict(loaded.config.evaluations()) if loaded.config else {}
    root = arguments.root or ""
    if arguments.root is None and loaded.config:
        root = loaded.config.data.root
    if arguments.data:
        name = arguments.name or pathlib.Path(arguments.data).name.split(".")[0].replace(":", "_")
        config = EvaluationConfig(
            "zeroshot_classification" if arguments.classes else "zeroshot_retrieval", arguments.data, arguments.classes
        )
        configs = {name: dataclasses.replace(config, templates=tuple(arguments.template or config.templates))}
        root = arguments.root or ""
    if not configs:
        raise UserError(
            "there is no recipe that names evaluations; give --data=SOURCE, and --classes=FILE.json for zero-shot"
        )
    evaluations = [evaluate.Evaluation(name, config, root) for name, config in configs.items()]
    encoder, params = loaded.evaluation_parts()
    output, pretrained = _names(pathlib.Path(arguments.path), folder)
    output = pathlib.Path(arguments.output) if arguments.output else output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}; name a folder that can be written") from None
    names = {"model": methods.to_config(loaded.method)["name"], "pretrained": pretrained}
    for result in evaluate.run_all(evaluations, encoder, params, output, names):
        print(evaluate.summary(result))
    for evaluation in evaluations:
        if evaluation.skips.total:
            print(f"{evaluation.name}: skipped {evaluation.skips.total} records: {evaluation.skips}", file=sys.stderr)
    print(f"results: {output.absolute()}")


def _names(path: pathlib.Path, checkpoint: pathlib.Path | None) -> tuple[pathlib.Path, str]:
    """Where results go if nothing else is said, and what the weights are called in them."""
    if checkpoint is None or not checkpoint.name.isdigit():  # public weights, or converted ones
        return pathlib.Path("evals") / path.absolute().name, path.absolute().name
    workdir = checkpoint.absolute().parent.parent
    return workdir / "evals" / checkpoint.name, f"{workdir.name}@{checkpoint.name}"


if __name__ == "__main__":
    sys.exit(main())
