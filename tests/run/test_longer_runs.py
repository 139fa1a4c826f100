"""Runs that go on past the length they had, and the learning rate's two ways to follow."""

from __future__ import annotations

import pathlib
import re
import types

import pytest
from commands import environment, recipe, rows, run

from configs import quickstart
from jaxclip.config import Config
from jaxclip.parsing import parse, to_dict
from jaxclip.train import length_note


def test_the_flags_that_a_longer_run_is_told_of_keep_its_learning_rate(tmp_path: pathlib.Path):
    command = [f"--config={recipe(tmp_path)}", f"--workdir={tmp_path}/run"]
    assert run(command, environment()).status == 0
    before = rows(tmp_path / "run")[-1]["learning_rate"]
    flags = re.findall(r"--\S+", note(steps=(4, 8), step=4))
    result = run([*command, "--config.steps=8", *flags], environment())
    assert result.status == 0, result.stderr
    assert "from step 4 on: config.optimizer.schedule.name cosine → constant" in result.stderr
    rates = [row["learning_rate"] for row in rows(tmp_path / "run")]
    # As far as the line writes it out.
    assert rates[3] == before and rates[4:] == pytest.approx([before] * 4, rel=5e-3)


def note(*, steps: tuple[int, int] = (0, 0), epochs: tuple[float, float] = (0, 0), step: int, end: float = 0) -> str:
    """What is said of a run of 1,280 records and batches of 128 that goes on from a step with another length."""
    recipe = quickstart.get_config()
    if end:
        recipe.optimizer.schedule.end = end
    recipe.steps, recipe.epochs, recipe.batch_size = steps[0], epochs[0], 128
    recipe.optimizer.warmup_steps, recipe.optimizer.learning_rate = 0, 5e-4
    config = parse(Config, recipe)
    length = steps[1] or int(epochs[1] * 10)
    return length_note(types.SimpleNamespace(config=config, steps=length, source=range(1280)), to_dict(config), step)


def test_a_longer_run_says_what_that_does_to_the_learning_rate_and_how_to_keep_it():
    # Half a cosine: at step 99 of 100 and at 100 of 200.
    said = note(steps=(100, 200), step=100)
    assert said.startswith("steps 100 → 200: the learning rate follows the new length, 1.2e-07 → 0.00025; to stay at")
    assert note(epochs=(10, 20), step=100) == said


def test_a_schedule_with_keys_of_its_own_is_changed_in_the_recipe():
    said = note(steps=(100, 200), step=100, end=0.01)
    keys = ("schedule={'name': 'constant'}", "learning_rate=5.12e-06", "warmup_steps=0")
    assert "write into the recipe " + ", ".join(f"config.optimizer.{key}" for key in keys) in said


def test_a_shorter_run_has_a_lower_rate_and_nothing_to_keep():
    assert note(steps=(200, 150), step=100).endswith("follows the new length, 0.00025 → 0.00012")


@pytest.mark.parametrize("lengths", [{"steps": (100, 100)}, {"epochs": (10, 10)}, {"epochs": (10, 10), "step": 0}])
def test_a_run_of_the_same_length_says_nothing_of_it(lengths):
    assert note(**{"step": 100} | lengths) == ""
