"""python -m jaxclip.evaluate DIR: evaluates a trained model, by its own recipe or on data named here."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

from jaxclip.config import EvaluationConfig
from jaxclip.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.evaluate", description=__doc__)
    parser.add_argument("path", help="a run's workdir, or one of the folders in its checkpoints/")
    parser.add_argument("--data", help="the source to evaluate on, such as val-00000.tar (default: the recipe's)")
    parser.add_argument("--classes", default="", help="JSON list of class names: zero-shot classification on --data")
    parser.add_argument("--template", action="append", help="a phrase with {c} for the class; may be given again")
    parser.add_argument("--name", help="name of the result (default: that of --data)")
    parser.add_argument("--root", help="the folder that relative paths start from (default: the recipe's)")
    parser.add_argument("--output", help="folder for the results (default: evals/STEP in the workdir)")
    arguments = parser.parse_args(argv)
    try:
        _evaluate(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    from jaxclip import checkpoint, evaluate, model

    loaded = model.load(arguments.path, batch_size=256)
    folder = checkpoint.find(pathlib.Path(arguments.path)).absolute()
    data = loaded.config.data
    configs = dict(loaded.config.evaluations())
    root = data.root if arguments.root is None else arguments.root
    if arguments.data:
        name = arguments.name or pathlib.Path(arguments.data).name.split(".")[0].replace(":", "_")
        config = EvaluationConfig(
            "zeroshot_classification" if arguments.classes else "zeroshot_retrieval", arguments.data, arguments.classes
        )
        configs = {name: dataclasses.replace(config, templates=tuple(arguments.template or config.templates))}
        root = arguments.root or ""
    if not configs:
        raise UserError("the recipe names no evaluations; give --data=SOURCE, and --classes=FILE.json for zero-shot")
    evaluations = [evaluate.Evaluation(name, config, root) for name, config in configs.items()]
    encoder, params = loaded.evaluation_parts()
    output = pathlib.Path(arguments.output) if arguments.output else folder.parent.parent / "evals" / folder.name
    names = {"model": str(loaded.config.method["name"]), "pretrained": f"{folder.parent.parent.name}@{folder.name}"}
    for result in evaluate.run_all(evaluations, encoder, params, output, names):
        print(evaluate.summary(result))
    for evaluation in evaluations:
        if evaluation.skips.total:
            print(f"{evaluation.name}: skipped {evaluation.skips.total} records: {evaluation.skips}", file=sys.stderr)
    print(f"results: {output.absolute()}")


if __name__ == "__main__":
    sys.exit(main())
