"""What a person may ask of the command wrongly: one line that says what and where, and status 2."""

from __future__ import annotations

import json
import pathlib

import pytest
from commands import png, without_phases
from tar_files import write_tar

from jaxclip.evaluate.__main__ import main

TEN = [f"name {number}" for number in range(10)]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Data with labels below 10, with one class alone, with captions, with nothing, and lists of names."""
    colors = ("red", "green", "blue", "white")

    def written(name: str, labels: list[int | None], caption: bool = False) -> None:
        members = []
        for number, label in enumerate(labels):
            members.append((f"{number:03}.png", png(colors[number % 4])))
            members += [] if label is None else [(f"{number:03}.cls", b"%d" % label)]
            members += [(f"{number:03}.txt", b"a color")] if caption else []
        write_tar(tmp_path / f"{name}.tar", members)

    written("labeled", [number % 10 for number in range(20)])
    written("alone", [3] * 8)
    written("captions", [None] * 8, caption=True)
    written("empty", [])
    for name, content in {
        "ten.json": json.dumps(TEN),
        "nine.json": json.dumps(TEN[:9]),
        "thousand.json": json.dumps([f"name {number}" for number in range(1000)]),
        "broken.json": '["a", ',
        "object.json": '{"a": 1}',
        "lines.json": "a\nb",
    }.items():
        (tmp_path / name).write_text(content)
    return tmp_path


PROBE = "--task=linear_probe"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["labeled.tar", "--classes=none.json"], "--classes: no file"),
        (["labeled.tar", "--classes=broken.json"], "is not JSON"),
        (["labeled.tar", "--classes=lines.json"], "is not JSON"),
        (["labeled.tar", "--classes=object.json"], "must hold a list of class names"),
        (["labeled.tar", "--classes=nine.json"], "label 9 is outside the 9 classes"),
        (["labeled.tar", "--classes=imagnet"], "did you mean imagenet"),
        (["labeled.tar", "--classes=ten.json", "--template=a photo"], "{c}"),
        (["tfds:mnist[tset]", "--classes=mnist"], "tfds:mnist is not in"),
        (["none.tar", "--classes=ten.json"], "none.tar does not exist"),
        (["empty.tar", "--classes=ten.json"], "empty.tar"),
        (["captions.tar", "--classes=ten.json"], "no class label"),
        (["labeled.tar"], "no caption"),
        (["captions.tar", PROBE, "--train=captions.tar"], "no class label"),
        (["labeled.tar", PROBE, "--train=captions.tar"], "--train: "),
        (["labeled.tar", PROBE, "--train=empty.tar"], "--train: "),
        (["labeled.tar", PROBE, "--train=alone.tar"], "train: all images have the same label"),
        (["labeled.tar", PROBE, "--train=labeled.tar", "--shots=0"], "must be at least 1"),
        (["labeled.tar", PROBE, "--train=labeled.tar", "--fractions=1.5"], "must lie between 0 and 1"),
        (["labeled.tar", "--task=nearest_neighbors", "--train=labeled.tar", "--neighbors=0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, weights, capsys, monkeypatch, options, said):
    monkeypatch.chdir(folder)
    assert main([weights, f"--data={options[0]}", *options[1:]]) == 2
    line = without_phases(capsys.readouterr().err)
    assert said in line and line.startswith("error: ") and line.count("\n") == 1, line
    assert "config." not in line, "the person has written no recipe"
    assert not list((folder / "evals").rglob("*.json"))


def test_more_names_than_classes_that_occur_are_said_and_one_class_is_a_figure(folder, weights, capsys, monkeypatch):
    """1,000 names may be right for a part of ImageNet: the result says how many occur."""
    monkeypatch.chdir(folder)
    assert main([weights, "--data=labeled.tar", "--classes=thousand.json", "--name=many"]) == 0
    assert "(1000 classes, of which 10 occur)" in capsys.readouterr().out
    assert main([weights, "--data=alone.tar", "--classes=ten.json", "--name=alone"]) == 0
    result = json.loads((folder / "evals" / "weights" / "alone.json").read_text())
    assert list(result["per_class_recall"]) == ["name 3"]


def test_names_for_another_number_of_classes_are_refused_if_the_data_say_theirs(folder, weights, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("cat", "dog"):
        (folder / "sorted" / name).mkdir(parents=True)
        (folder / "sorted" / name / "1.png").write_bytes(png("red"))
    assert main([weights, "--data=sorted", "--classes=thousand.json"]) == 2
    said = without_phases(capsys.readouterr().err)
    assert said.endswith("thousand.json has 1000 names for the 2 classes of sorted\n") and said.count("\n") == 1
