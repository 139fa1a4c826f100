"""Runs to do harm to: a recipe that takes seconds, and what has to be equal afterwards."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import commands  # noqa: E402

# Everything that a state can have besides parameters and moments is bit for bit in tests/run/test_memory.py.
CHANGE = """
config.steps = {steps}
config.checkpoint_every = 10
config.keep_checkpoints = 3
config.eval_every = 15
config.data.flip = True
config.data.crop_scale = (0.5, 1.0)
config.data.eval = "pairs.tar"
config.evals = {{"pairs": {{"task": "zeroshot_retrieval", "data": "pairs.tar"}}}}
"""
SAME = ("loss", "grad_norm", "param_norm", "batch_accuracy", "logit_scale", "validation_loss")


def made(folder: pathlib.Path, steps: int, patch: str = "", change: str = "") -> pathlib.Path:
    """Writes the recipe, with further lines that change it, and its 64 pairs; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    return commands.recipe(folder, CHANGE.format(steps=steps) + change, size=200, patch=patch)


def begun(
    recipe: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path, env: Mapping[str, str] | None = None
) -> commands.Command:
    """Starts the command, with its output in a file."""
    return commands.start([f"--config={recipe}", f"--workdir={workdir}"], commands.environment(env), output)


def ended(
    recipe: pathlib.Path, workdir: pathlib.Path, *flags: str, env: Mapping[str, str] | None = None
) -> commands.Result:
    """Runs the command to its end."""
    return commands.run([f"--config={recipe}", f"--workdir={workdir}", *flags], commands.environment(env))


def figures(workdir: pathlib.Path) -> dict[int, tuple]:
    """What every step was, by step; raises AssertionError if a step is logged twice."""
    rows = commands.rows(workdir)
    found = {row["step"]: tuple(row.get(name) for name in SAME) for row in rows}
    assert len(found) == len(rows), f"a step is logged twice in {workdir}"
    return found


def steps(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
