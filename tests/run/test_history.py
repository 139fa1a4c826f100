"""The metric for plateau schedules and the best checkpoint: restored after a restart and updated by a run."""

from __future__ import annotations

import json
import math
import pathlib

import pytest
from commands import environment, recipe, rows, run

from jaxclip import checkpoint
from jaxclip.history import History

PLATEAU = """
config.eval_every = 1
config.steps = 6
config.data.eval = "pairs.tar"
config.evals = {}
config.optimizer.learning_rate = 0.0
config.optimizer.schedule = {"name": "plateau", "patience": 1, "factor": 0.5, "stop": 2}
config.keep_best = "validation_loss"
"""


def write_log(workdir: pathlib.Path, values: dict[int, float | None]) -> None:
    lines = [json.dumps({"step": step, "validation_loss": value}) for step, value in values.items()]
    (workdir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "valid']))


def test_values_of_validation_are_read_back_up_to_the_step_that_a_run_goes_on_from(tmp_path):
    write_log(tmp_path, {2: 3.0, 4: 2.0, 5: None, 6: 1.0})
    assert History("validation_loss", tmp_path, 4).values == [3.0, 2.0]
    assert History("validation_loss", tmp_path, 0).values == []


def test_values_of_an_evaluation_are_read_back_with_their_sign(tmp_path):
    for step, value in ((10, 0.5), (2, 0.25)):
        (tmp_path / "evals" / str(step)).mkdir(parents=True)
        (tmp_path / "evals" / str(step) / "set.json").write_text(json.dumps({"metrics": {"acc1": value}}))
    assert History("-set/acc1", tmp_path, 10).values == [-0.25, -0.5]


def test_only_a_new_and_better_value_is_an_improvement(tmp_path):
    write_log(tmp_path, {2: 3.0})
    history = History("validation_loss", tmp_path, 2)
    assert [history.add(step, {"validation_loss": value}) for step, value in ((2, 1.0), (4, 3.5), (6, 2.0))] == [
        False,
        False,
        True,
    ]
    assert not history.add(8, {"other": 0.0}) and not history.add(8, {"validation_loss": math.nan})
    assert history.values[:3] == [3.0, 3.5, 2.0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A run that never improves, and its output."""
    folder = tmp_path_factory.mktemp("plateau")
    result = run([f"--config={recipe(folder, PLATEAU)}", f"--workdir={folder}/run"], environment())
    assert result.status == 0, result.stderr
    return folder, result.stderr


def test_a_run_stops_if_its_metric_no_longer_improves(stopped):
    folder, said = stopped
    assert [row["step"] for row in rows(folder / "run")] == [1, 2, 3]
    assert "stopped early after step 3" in said
    assert (folder / "run" / "report.html").exists()


def test_a_run_that_stopped_early_is_done(stopped):
    folder, _ = stopped
    again = run([f"--config={folder}/tiny.py", f"--workdir={folder}/run"], environment())
    assert again.status == 0 and "stopped early after step 3" in again.stderr
    assert [row["step"] for row in rows(folder / "run")] == [1, 2, 3]


def test_the_best_checkpoint_is_a_model_to_use(stopped):
    import jaxclip

    folder, _ = stopped
    assert checkpoint.find(folder / "run" / "best") == folder / "run" / "best"
    assert jaxclip.load(folder / "run" / "best").encode_text("a red dot").shape == (1, 16)


def test_a_metric_that_is_never_measured_is_named_before_training(tmp_path):
    change = PLATEAU + '\nconfig.keep_best = "-other/acc1"'
    result = run([f"--config={recipe(tmp_path, change)}", f"--workdir={tmp_path}/run"], environment())
    assert result.status == 2 and "config.keep_best='-other/acc1' is not measured" in result.stderr
