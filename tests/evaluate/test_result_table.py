"""Tables of results of several models."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess

import pytest

from jaxclip.errors import UserError
from jaxclip.evaluate import __main__ as command
from jaxclip.evaluate import table


def write(folder: pathlib.Path, dataset: str, model: str, metrics: dict, task: str = "zeroshot_classification") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "task": task, "model": model, "pretrained": "run@9", "metrics": metrics}
    (folder / f"{dataset}.json").write_text(json.dumps(content | {"language": "en", "summary": "a | b"}))


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


@pytest.mark.peer
def test_clip_benchmark_builds_its_table_from_our_folder(peer_python, folders, tmp_path):
    out = tmp_path / "out.csv"
    code = "import sys; from clip_benchmark.cli import main; sys.exit(main())"
    subprocess.run([peer_python, "-c", code, "build", str(folders[1]), "--output", str(out)], check=True)
    rows = list(csv.DictReader(out.open()))
    assert {row["model_fullname"] for row in rows} == {"sig|lip run@9"}
    assert {row["dataset"]: row["acc1"] or row["CIDEr"] for row in rows} == {"cifar10": "0.5", "coco": "1.25"}
