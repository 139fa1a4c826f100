"""python -m jaxclip.checkpoint: verify, list, prune."""

from __future__ import annotations

import pathlib
import shutil

import pytest
from test_checkpoint import three
from test_damage import DAMAGES

from jaxclip.checkpoint.__main__ import main

EVENTS = [
    {"step": 1, "event": "change", "key": "optimizer.learning_rate", "before": 1.0, "after": 0.5},
    {"step": 2, "event": "rewind", "to": 1, "reason": "step 2: loss is nan", "batches": 1},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return three(tmp_path_factory.mktemp("whole"), {"config": {}, "events": EVENTS})


@pytest.fixture
def workdir(whole, tmp_path) -> pathlib.Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def steps(workdir: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_verify_names_what_is_damaged_and_exits_2(workdir, capsys):
    assert main(["verify", str(workdir)]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["3: whole", "2: whole", "1: whole"]
    DAMAGES["arrays cut"](workdir / "checkpoints" / "2")
    assert main(["verify", str(workdir)]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[1].startswith("2: damaged: ") and said.err.startswith("error: 1 of the checkpoints")


def test_list_says_what_there_is_and_what_has_happened(workdir, capsys):
    assert main(["list", str(workdir)]) == 0
    *listed, change, rewind = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["3", "2", "1"] and all(" MiB " in line for line in listed)
    assert change == "at step 1: config.optimizer.learning_rate 1.0 → 0.5"
    assert rewind == "at step 2: went back to 1, without the batches since: step 2: loss is nan"


@pytest.mark.parametrize(
    ("arguments", "left"),
    [(["--keep=1"], ["3"]), (["--after=1"], ["1"]), (["--after=3"], ["1", "2", "3"]), (["--damaged"], ["1", "2", "3"])],
)
def test_prune_deletes_what_it_is_asked_to(workdir, capsys, arguments, left):
    (workdir / "checkpoints" / "9.damaged").mkdir()
    assert main(["prune", str(workdir), *arguments]) == 0
    (workdir / "checkpoints" / "9.damaged").rmdir() if arguments != ["--damaged"] else None
    assert steps(workdir) == left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--keep=0"], "keep at least 1"), (["--after=7"], "there are the steps 3, 2, 1")],
)
def test_a_prune_that_makes_no_sense_is_one_line(workdir, capsys, arguments, said):
    assert main(["prune", str(workdir), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert steps(workdir) == ["1", "2", "3"]


@pytest.mark.parametrize("path", ["none", "gs://bucket/run"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys, path):
    assert main(["list", str(tmp_path / path) if path == "none" else path]) == 2
    assert capsys.readouterr().err.count("\n") == 1
