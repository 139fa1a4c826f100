"""Tables of results of several models."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest

from jaxclip.errors import UserError
from jaxclip.evaluate import __main__ as command
from jaxclip.evaluate import intervals, table


def write(
    folder: pathlib.Path,
    dataset: str,
    model: str,
    metrics: dict,
    task: str = "zeroshot_classification",
    **further: Any,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "task": task, "model": model, "pretrained": "run@9", "metrics": metrics}
    (folder / f"{dataset}.json").write_text(json.dumps(content | {"language": "en", "summary": "a | b"} | further))


@pytest.fixture
def folders(tmp_path) -> list[pathlib.Path]:
    write(tmp_path / "a" / "evals" / "100", "cifar10", "clip", {"acc1": 0.1})
    write(tmp_path / "a" / "evals" / "2000", "cifar10", "clip", {"acc1": 0.625, "acc5": None})
    write(tmp_path / "b", "cifar10", "sig|lip", {"acc1": 0.5, "acc5": 0.9})
    write(tmp_path / "b", "coco", "sig|lip", {"CIDEr": 1.25}, "captioning")
    return [tmp_path / "a", tmp_path / "b"]


def test_a_row_is_a_model_and_the_best_is_bold(folders):
    assert table.as_markdown(table.read(folders)) == (
        "| model | cifar10 acc1 | coco CIDEr |\n"
        "| --- | --: | --: |\n"
        "| clip run@9 | **62.5** | - |\n"
        "| sig\\|lip run@9 | 50.0 | **1.25** |\n"
    )


def test_one_model_alone_is_not_the_best(folders):
    assert "**" not in table.as_markdown(table.read(folders[:1]))


def test_a_low_rank_is_the_best_and_no_percentage(tmp_path):
    write(tmp_path / "a", "coco", "a", {"median_rank": 1.0}, "median_rank")
    write(tmp_path / "b", "coco", "b", {"median_rank": 1234.5}, "median_rank")
    write(tmp_path / "a", "flickr", "a", {"CIDEr": 0.95}, "captioning")
    write(tmp_path / "b", "flickr", "b", {"CIDEr": float("nan")}, "captioning")
    assert table.as_markdown(table.read([tmp_path / "a", tmp_path / "b"])).splitlines()[2:] == [
        "| a run@9 | **1.00** | **0.95** |",
        "| b run@9 | 1234.50 | - |",
    ]


def test_runs_of_one_name_are_different_models(tmp_path):
    for folder, value in (("a", 0.5), ("b", 0.6)):
        write(tmp_path / folder, "cifar10", "clip", {"acc1": value})
    write(tmp_path / "c", "coco", "clip", {"acc1": 0.1})
    rows = table.read([tmp_path / name for name in "abc"])
    assert [row.model for row in rows] == ["clip run@9", f"clip run@9 in {tmp_path / 'b'}"]
    assert len(rows[0].figures) == 2, "another set of the same model"


def test_a_csv_has_every_figure(folders):
    rows = list(csv.reader(table.as_csv(table.read(folders)).splitlines()))
    assert rows == [
        ["model", *(f"cifar10/zeroshot_classification/{name}" for name in ("acc1", "acc5")), "coco/captioning/CIDEr"],
        ["clip run@9", "0.625", "", ""],
        ["sig|lip run@9", "0.5", "0.9", "1.25"],
    ]


def test_html_is_escaped(folders):
    write(folders[1] / "c", "<set>", "<model>", {"acc1": 1.0})
    found = table.as_html(table.read([folders[1] / "c"]))
    assert "<td>&lt;model&gt; run@9</td>" in found and "<th>&lt;set&gt; acc1</th>" in found
    assert found.count("<tr>") == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no results; give a run's workdir or a folder of jaxclip.evaluate's JSON files"),
        ("{", "x.json cannot be read: it is not JSON"),
        ("[]", "x.json is no result of an evaluation: it lacks metrics, dataset, task, model, pretrained"),
        (
            '{"metrics": {"acc1": "1"}, "dataset": "a", "task": "b", "model": "c", "pretrained": "d"}',
            "x.json has metrics that are no numbers",
        ),
    ],
)
def test_what_is_no_result_is_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError) as caught:
        table.read([tmp_path])
    assert str(caught.value).startswith("--table: ") and str(caught.value).endswith(said)


def test_the_command_prints_it(folders, capsys):
    assert command.main(["--table", *map(str, folders), "--form=csv"]) == 0
    assert capsys.readouterr().out == table.as_csv(table.read(folders))
    assert command.main(["--table", str(folders[0]), "--data=x.tar"]) == 2
    assert "error: --data is for an evaluation, and not for --table\n" in capsys.readouterr().err
    assert command.main([]) == 2
    assert "give the PATH of a model" in capsys.readouterr().err


RIGHT = {
    "a": "1" * 60 + "0" * 40,
    "b": "1" * 72 + "0" * 28,
    "c": "0" * 40 + "1" * 60,
}


@pytest.fixture
def compared(tmp_path) -> list[pathlib.Path]:
    """The outcomes of three models over the same examples, of a fourth over others, and of a fifth none."""
    for model, right in RIGHT.items():
        outcomes = {"outcomes": {"acc1": right}, "outcomes_of": "same"}
        write(tmp_path / model, "set", model, {"acc1": right.count("1") / 100, "ECE": 0.25}, **outcomes)
    write(tmp_path / "d", "set", "d", {"acc1": 0.6}, outcomes={"acc1": RIGHT["a"]}, outcomes_of="other")
    write(tmp_path / "e", "set", "e", {"acc1": 0.6})
    return [tmp_path / model for model in "abcde"]


def percent(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def test_intervals_stand_by_their_figures_and_differences_to_the_first_model(compared):
    """The second model has twelve more right and none wrong; the third is wrong on 40 others than the first."""
    a, b, c = (np.array([*text]) == "1" for text in RIGHT.values())
    alone, better = (percent(*intervals.of_mean(right)) for right in (a, b))
    gain, same = (percent(*intervals.of_difference(right, a)) for right in (b, c))
    rows = table.read(compared, intervals=True)
    assert table.as_markdown(rows) == (
        "| model | set acc1 |\n"
        "| --- | --: |\n"
        f"| a run@9 | 60.0 {alone} |\n"
        f"| b run@9 | **72.0** {better}; +12.0 {gain} ≠ 0 |\n"
        f"| c run@9 | 60.0 {alone}; +0.0 {same} |\n"
        f"| d run@9 | 60.0 {alone} |\n"
        "| e run@9 | 60.0 |\n"
    )
    assert f"<td><b>72.0</b> {better}; +12.0 {gain} ≠ 0</td>" in table.as_html(rows)
    loss = percent(*intervals.of_difference(a, b))
    turned = table.as_markdown(table.read(compared[1::-1], intervals=True))
    assert f"| a run@9 | 60.0 {alone}; -12.0 {loss} ≠ 0 |" in turned


def test_a_csv_has_the_bounds_in_columns(compared):
    lines = list(csv.DictReader(table.as_csv(table.read(compared, intervals=True)).splitlines()))
    name = "set/zeroshot_classification/acc1"
    parts = ("low", "high", "difference", "difference_low", "difference_high")
    assert list(lines[0]) == ["model", name, *(f"{name}/{part}" for part in parts), "set/zeroshot_classification/ECE"]
    a, b, _ = (np.array([*text]) == "1" for text in RIGHT.values())
    expected = (*intervals.of_mean(b), 0.12, *intervals.of_difference(b, a))
    assert [float(lines[1][f"{name}/{part}"]) for part in parts] == [*expected]
    for line in (lines[0], lines[3]):
        assert line[f"{name}/low"] and not any(line[f"{name}/{part}"] for part in parts[2:])
    assert not any(lines[4][f"{name}/{part}"] for part in parts)


def test_without_outcomes_or_the_option_a_table_is_as_before(compared):
    before = [form(table.read(compared)) for form in table.FORMS.values()]
    for folder in compared:
        file = folder / "set.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in content.items() if "outcomes" not in key}))
    assert before == [form(table.read(compared, intervals=True)) for form in table.FORMS.values()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"outcomes": {"acc1": "012"}, "outcomes_of": "same"}, "has outcomes of acc1 that are no string of 0 and 1"),
        ({"outcomes": {"acc1": ""}, "outcomes_of": "same"}, "has outcomes of acc1 that are no string of 0 and 1"),
        ({"outcomes": {"acc1": [1, 0]}, "outcomes_of": "same"}, "has outcomes of acc1 that are no string of 0 and 1"),
        ({"outcomes": "01"}, "has outcomes without metrics, or outcomes_of that is no text"),
        (
            {"outcomes": {"acc1": "01"}, "outcomes_of": 3},
            "has outcomes without metrics, or outcomes_of that is no text",
        ),
        (
            {"outcomes": {"acc1": "01"}, "outcomes_of": "same"},
            "has 2 outcomes of acc1, and {folder}/a/set.json 100 over the same examples; evaluate both again",
        ),
    ],
)
def test_wrong_outcomes_are_one_line_for_a_table_with_intervals(compared, tmp_path, capsys, content, said):
    write(tmp_path / "f", "set", "f", {"acc1": 0.5}, **content)
    folders = [*map(str, compared), str(tmp_path / "f")]
    assert command.main(["--table", *folders]) == 0
    capsys.readouterr()
    assert command.main(["--table", *folders, "--intervals"]) == 2
    said = said.format(folder=tmp_path)
    assert capsys.readouterr().err.endswith(f"error: --table: {tmp_path / 'f' / 'set.json'} {said}\n")


def test_the_command_shows_intervals_if_asked(compared, capsys):
    assert command.main(["--table", *map(str, compared), "--intervals"]) == 0
    assert capsys.readouterr().out == table.as_markdown(table.read(compared, intervals=True))
    assert command.main(["runs/demo", "--intervals"]) == 2
    assert "error: --intervals is for --table, and not for an evaluation\n" in capsys.readouterr().err


@pytest.mark.peer
def test_clip_benchmark_builds_its_table_from_our_folder(peer_python, folders, tmp_path):
    write(folders[1], "coco", "sig|lip", {"CIDEr": 1.25}, "captioning", outcomes={"a": "0" * 50_000}, outcomes_of="x")
    out = tmp_path / "out.csv"
    code = "import sys; from clip_benchmark.cli import main; sys.exit(main())"
    subprocess.run([peer_python, "-c", code, "build", str(folders[1]), "--output", str(out)], check=True)
    rows = list(csv.DictReader(out.open()))
    assert {row["model_fullname"] for row in rows} == {"sig|lip run@9"}
    assert {row["dataset"]: row["acc1"] or row["CIDEr"] for row in rows} == {"cifar10": "0.5", "coco": "1.25"}
