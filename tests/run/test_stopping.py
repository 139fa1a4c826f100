"""SIGTERM, SIGHUP and Ctrl-C: the exit status, what is saved, and how soon."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from commands import Command, environment, losses, recipe, rows, run, start, wait_until

from jaxclip.stopping import Signals, Stopped, interruptible

# What stalls writes a file first.
STALLING_DATA = """
import pathlib, time
from jaxclip.data import loader

rows = loader.TrainingLoader.rows


def stalling(self, position, count):
    if position == 8 * 6:
        pathlib.Path(FOLDER, "stalled").touch()
        time.sleep(600)
    return rows(self, position, count)


loader.TrainingLoader.rows = stalling
"""
EVALUATING = """
config.steps = 6
config.checkpoint_every = 0
config.eval_every = 3
config.data.eval = "pairs.tar"
config.evals = {"pairs": {"task": "zeroshot_retrieval", "data": "pairs.tar"}}
"""
STALLING_EVALUATION = """
import os, pathlib, time
from jaxclip.evaluate import zeroshot_retrieval

evaluate = zeroshot_retrieval.Evaluator.run


def stalling(self, *given):
    done = len(list(pathlib.Path(FOLDER).glob("run/evals/*/*.json")))
    if os.environ.get("STALL_AT") == str(done):
        pathlib.Path(FOLDER, "stalled").touch()
        time.sleep(600)
    return evaluate(self, *given)


zeroshot_retrieval.Evaluator.run = stalling
"""
STALLING_SAVE = """
import time
from jaxclip.checkpoint import Checkpoints

Checkpoints.save = lambda *_: time.sleep(600)
"""


@pytest.fixture
def started(tmp_path) -> Iterator[Callable[..., tuple[Command, pathlib.Path]]]:
    """Starts a run of the tiny recipe with changes; returns it and the file of its output. It is killed at the end."""
    commands = []

    def begin(change: str, patch: str = "", env: dict[str, str] | None = None) -> tuple[Command, pathlib.Path]:
        path, output = recipe(tmp_path, change, patch=patch), tmp_path / "output.txt"
        commands.append(start([f"--config={path}", f"--workdir={tmp_path}/run"], environment(env), output))
        return commands[-1], output

    yield begin
    for command in commands:
        command.kill()
        command.wait()


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def test_ctrl_c_saves_the_very_step_and_exits_130(tmp_path, started):
    process, output = started("config.steps = 1000\nconfig.checkpoint_every = 0")
    log = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 5, process, output)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, output.read_text()
    last = output.read_text().splitlines()[-1]
    step = int(
        re.fullmatch(r"stopped by Ctrl-C after step (\d+); everything is saved, the same command goes on", last)[1]
    )
    assert steps(tmp_path / "run") == [step] and rows(tmp_path / "run")[-1]["step"] == step


def test_data_that_never_come_do_not_delay_a_stop(tmp_path, started):
    process, output = started("config.steps = 30", STALLING_DATA)
    wait_until((tmp_path / "stalled").exists, process, output)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 5, process, output)
    process.terminate()
    assert process.wait(60) == 75, output.read_text()
    assert "stopped by SIGTERM after step 6; everything is saved" in output.read_text()
    assert steps(tmp_path / "run")[-1] == 6 and [*losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_evaluations_that_were_stopped_are_made_up_for(tmp_path, started):
    """One on the way and the final one, each by the same command that was stopped at it."""
    expected = [("everything is saved", [3]), ("the final evaluation is not finished", [3, 6])]
    for done, (said, saved) in enumerate(expected):
        (tmp_path / "stalled").unlink(missing_ok=True)
        process, output = started(EVALUATING, STALLING_EVALUATION, {"STALL_AT": str(done)})
        wait_until((tmp_path / "stalled").exists, process, output)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 75, output.read_text()
        assert f"stopped by SIGHUP; {said}, the same command goes on" in output.read_text()
        assert steps(tmp_path / "run") == saved

    result = run([f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/run"], environment())
    assert result.status == 0, result.stderr
    assert [*losses(tmp_path / "run")] == [*range(1, 7)]
    assert all("validation_loss" in row for row in rows(tmp_path / "run") if row["step"] in (3, 6))
    evaluated = sorted(int(path.parent.name) for path in (tmp_path / "run" / "evals").glob("*/pairs.json"))
    assert evaluated == [3, 6]
    assert json.loads((tmp_path / "run" / "evals" / "3" / "pairs.json").read_text())["metrics"]


def test_a_second_signal_ends_the_process_at_once(tmp_path, started):
    process, output = started(EVALUATING, STALLING_EVALUATION + STALLING_SAVE, {"STALL_AT": "0"})
    wait_until((tmp_path / "stalled").exists, process, output)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert output.read_text().endswith("stopped by Ctrl-C at once\n")


def test_signals_wait_for_what_has_something_to_save_and_end_all_else():
    with Signals().handled() as signals:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked
            with pytest.raises(Stopped, match="stopped by SIGTERM; again"), signals.at_once("again"):
                raise AssertionError("not reached")
        assert signals.status == 75
    with Signals().handled() as signals, pytest.raises(Stopped, match="stopped by Ctrl-C; run the same"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    assert signals.status == 130


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals().handled() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert not signals.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interruptible_work_returns_raises_and_is_left_on_a_signal():
    assert interruptible(max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)
    with Signals().handled(), pytest.raises(Stopped):
        interruptible(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5)))


def test_a_stop_while_the_first_batch_is_waited_for_has_nothing_to_save(tmp_path, started):
    process, output = started("config.steps = 30", STALLING_DATA.replace("position == 8 * 6", "True"))
    wait_until((tmp_path / "stalled").exists, process, output)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, output.read_text()
    assert output.read_text().splitlines()[-1].startswith("stopped by Ctrl-C after step 0; ")
    assert steps(tmp_path / "run") == []
