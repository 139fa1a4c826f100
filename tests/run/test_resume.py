"""Resumed runs after a kill or a stop, with the same results as an uninterrupted run."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import signal
from collections.abc import Iterator

import pytest
from commands import Command, environment, losses, recipe, rows, run, run_anew, start, wait_until
from saved_state import final_state

STEPS, EVERY = 60, 20
CHANGE = f"""
config.steps = {STEPS}
config.checkpoint_every = {EVERY}
config.data.flip = True
config.data.crop_scale = (0.5, 1.0)
config.method.image.patch_drop = 0.5
config.data.eval = "pairs.tar"
config.evals = {{"pairs": {{"task": "zeroshot_retrieval", "data": "pairs.tar"}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Holds the recipe and its data. With images of 400 pixels, a step takes long enough for a save to finish."""
    folder = tmp_path_factory.mktemp("resume")
    recipe(folder, CHANGE, size=400)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder: pathlib.Path) -> pathlib.Path:
    """The workdir of a run that nothing happened to."""
    result = run_anew(arguments(folder, "unbroken"), environment())
    assert result.status == 0, result.stderr
    first, note, *lines, last = result.stderr.splitlines()
    assert note.startswith("data.eval, config.evals.pairs.data: trained on, too")
    assert first.startswith("64 records, ") and last.startswith("report: ") and result.stdout == ""
    assert all(re.match(r"step \d+(/60: loss|: pairs: text to image|: validation loss) ", line) for line in lines), (
        result.stderr
    )
    assert [*losses(folder / "unbroken")] == [*range(1, STEPS + 1)]
    return folder / "unbroken"


@pytest.fixture
def started(folder: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[tuple[Command, pathlib.Path]]:
    """A run that has begun, and its workdir, named after the test."""
    name = request.node.name
    process = start(arguments(folder, name), environment(), folder / f"{name}.txt")
    yield process, folder / name
    process.kill()
    process.wait()


def arguments(folder: pathlib.Path, workdir: str) -> list[str]:
    return [f"--config={folder}/tiny.py", f"--workdir={folder}/{workdir}"]


def complete(workdir: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def logged(workdir: pathlib.Path) -> int:
    """How many whole lines metrics.jsonl has."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def assert_as_unbroken(workdir: pathlib.Path, unbroken: pathlib.Path) -> None:
    """The same losses at every step, the same state at the end, the same evaluation."""
    assert losses(workdir) == losses(unbroken)
    for key in ("grad_norm", "batch_accuracy", "learning_rate", "logit_scale", "param_norm"):
        assert [row[key] for row in rows(workdir)] == [row[key] for row in rows(unbroken)], key
    assert final_state(workdir) == final_state(unbroken)
    found, expected = (
        json.loads((folder / "evals" / str(STEPS) / "pairs.json").read_text()) for folder in (workdir, unbroken)
    )
    assert found["metrics"] == expected["metrics"]


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_ends_as_if_unbroken(started, unbroken, folder):
    process, workdir = started
    output = folder / f"{workdir.name}.txt"
    wait_until(lambda: EVERY in complete(workdir) and logged(workdir) >= EVERY + 5, process, output)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    last, done = complete(workdir)[-1], rows_before_a_cut(workdir)[-1]["step"]
    assert done < STEPS, "it was killed too late to show anything"
    # A line that the kill might have cut off.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 77, "lo')

    result = run(arguments(folder, workdir.name), environment())
    assert result.status == 0, result.stderr
    assert result.stderr.startswith(f"continuing from the checkpoint of step {last} in {workdir}\n")
    assert done - last <= EVERY
    assert_as_unbroken(workdir, unbroken)
    assert complete(workdir) == [STEPS - 2 * EVERY, STEPS - EVERY, STEPS]
    assert not [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit()]


def rows_before_a_cut(workdir: pathlib.Path) -> list[dict]:
    """The rows of the whole lines of metrics.jsonl."""
    whole = (workdir / "metrics.jsonl").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def test_sigterm_saves_the_very_step_exits_75_and_the_same_command_goes_on(started, unbroken, folder):
    process, workdir = started
    output = folder / f"{workdir.name}.txt"
    wait_until(lambda: logged(workdir) >= 7, process, output)
    process.terminate()
    assert process.wait(60) == 75, output.read_text()
    said = output.read_text().splitlines()[-1]
    stopped = int(re.fullmatch(r"stopped by SIGTERM after step (\d+); .* the same command goes on", said)[1])
    assert complete(workdir)[-1] == stopped == rows(workdir)[-1]["step"] < STEPS
    assert "Traceback" not in output.read_text()

    result = run(arguments(folder, workdir.name), environment())
    assert result.status == 0, result.stderr
    assert result.stderr.startswith(f"continuing from the checkpoint of step {stopped} in {workdir}\n")
    assert_as_unbroken(workdir, unbroken)


def test_sigterm_before_the_first_step_exits_75_too(tmp_path):
    path, output = tmp_path / "slow.py", tmp_path / "output.txt"
    path.write_text(f"""
import pathlib, time

def get_config():
    pathlib.Path("{tmp_path}/started").touch()
    time.sleep(60)
""")
    process = start([f"--config={path}", f"--workdir={tmp_path}/run"], environment(), output)
    wait_until((tmp_path / "started").exists, process, output)
    process.terminate()
    assert process.wait(30) == 75
    assert output.read_text() == "stopped by SIGTERM; nothing has changed, run the same command again\n"


def files(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_run_is_evaluated_again_and_not_trained(unbroken, folder):
    shutil.copytree(unbroken, folder / "finished")
    evaluation = folder / "finished" / "evals" / str(STEPS) / "pairs.json"
    expected = evaluation.read_text()
    evaluation.unlink()
    saved, metrics = files(folder / "finished" / "checkpoints"), (folder / "finished" / "metrics.jsonl").read_text()

    result = run(arguments(folder, "finished"), environment())
    assert result.status == 0, result.stderr
    assert f"all {STEPS} steps are done already" in result.stderr
    assert json.loads(evaluation.read_text())["metrics"] == json.loads(expected)["metrics"]
    assert files(folder / "finished" / "checkpoints") == saved
    assert (folder / "finished" / "metrics.jsonl").read_text() == metrics


@pytest.mark.slow
def test_a_finished_run_goes_on_where_more_steps_are_asked_for(unbroken, folder):
    shutil.copytree(unbroken, folder / "longer")
    more = [f"--config.steps={STEPS + 10}", "--config.log_every=1", "--config.eval_every=35"]
    result = run([*arguments(folder, "longer"), *more], environment())
    assert result.status == 0, result.stderr
    assert result.stderr.startswith(f"continuing from the checkpoint of step {STEPS} in ")
    longer = losses(folder / "longer")
    assert [*longer] == [*range(1, STEPS + 11)]
    assert {step: loss for step, loss in longer.items() if step <= STEPS} == losses(unbroken)
    assert complete(folder / "longer")[-1] == STEPS + 10


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_unbroken(unbroken, folder):
    workdir = folder / "battered"
    for number in range(3):
        output = folder / f"battered{number}.txt"
        before = complete(workdir)[-1] if workdir.exists() and complete(workdir) else 0
        process = start(arguments(folder, "battered"), environment(), output)
        wait_until(lambda before=before: before + EVERY in complete(workdir), process, output)
        process.kill()
        process.wait()
    assert run(arguments(folder, "battered"), environment()).status == 0
    assert_as_unbroken(workdir, unbroken)
