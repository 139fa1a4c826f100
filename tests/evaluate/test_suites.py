"""Suites of data sets: their tables, what of them exists, and their evaluation in one command."""

from __future__ import annotations

import json
import pathlib

import pytest
from commands import recipe, without_phases
from tar_files import write_tar

from jaxclip import evaluate
from jaxclip.data.sources import open_source
from jaxclip.errors import UserError
from jaxclip.evaluate import suites
from jaxclip.evaluate.__main__ import main

TABLE = """
sets = ["food101"]

[colors]
data = ["nowhere.tar", "colors.tar"]
train = "colors.tar"
classes = "classes.json"
metric = "mean_per_class_recall"

[pairs]
task = "zeroshot_retrieval"
data = "pairs.tar"
metric = ["image_retrieval_recall@1", "text_retrieval_recall@1"]
"""


def suite_in(folder: pathlib.Path, table: str = TABLE) -> list[str]:
    """Writes a suite and its data; returns the options that name them."""
    recipe(folder)
    records = open_source("pairs.tar", root=str(folder)).read(range(24))
    members = [(f"{number:02}.png", record.image) for number, record in enumerate(records)]
    members += [(f"{number:02}.cls", b"%d" % (number % 2)) for number in range(len(records))]
    write_tar(folder / "colors.tar", sorted(members))
    (folder / "classes.json").write_text('["red", "green"]')
    (folder / "mine.toml").write_text(table)
    return [f"--suite={folder / 'mine.toml'}", f"--data={folder}", f"--output={folder / 'out'}"]


@pytest.mark.parametrize(
    ("suite", "count"),
    [("clip27", 27), ("vtab+", 36), ("imagenet_robustness", 6), ("retrieval", 3), ("datacomp38", 32)],
)
def test_a_suite_names_its_data_sets(suite, count):
    found = suites.read(suite)
    assert len(found) == count
    for name, one in found.items():
        assert evaluate.SAFE_NAME.fullmatch(name)
        assert evaluate.keys(one.task) is not None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('sets = ["fod101"]', "fod101 is not known; did you mean food101?"),
        ("", "names no data set"),
        ("x = 3", "x must be a table"),
        ("[x]\ntask = 'a'", "x.data is missing"),
        ("[x]\ndata = 3", "x.data"),
        ("[x", "is not TOML"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, table, said):
    (tmp_path / "x.toml").write_text(table)
    with pytest.raises(UserError) as caught:
        suites.read(str(tmp_path / "x.toml"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_suite_names_the_nearest(capsys):
    assert main(["weights", "--suite=clip72"]) == 2
    assert "there is no such suite; did you mean clip27?" in capsys.readouterr().err


def test_a_suite_is_evaluated_as_far_as_it_exists(weights, tmp_path, capsys):
    assert main([weights, *suite_in(tmp_path), "--tasks=zeroshot_classification,zeroshot_retrieval,linear_probe"]) == 0
    said = capsys.readouterr()
    assert "food101 is not here: wds_food101/test and tfds:food101[validation]" in said.err
    files = sorted(path.stem for path in (tmp_path / "out").glob("*.json"))
    # No classes of captions, no captions of classes, and nothing to learn from without a train.
    assert files == ["colors", "colors.linear_probe", "pairs"]
    results = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in files}
    assert {result["dataset"] for result in results.values()} == {"colors", "pairs"}
    # The figure that the table names comes first, as tables of results show it.
    assert next(iter(results["colors"]["metrics"])) == "mean_per_class_recall"
    assert next(iter(results["colors.linear_probe"]["metrics"])) == "lp_mean_per_class_recall"
    name, value = next(iter(results["pairs"]["metrics"].items()))
    assert name == "mean of image_retrieval_recall@1 and text_retrieval_recall@1"
    recalls = [results["pairs"]["metrics"][f"{kind}_retrieval_recall@1"] for kind in ("image", "text")]
    assert value == pytest.approx(sum(recalls) / 2)


def test_a_suite_that_was_stopped_goes_on_and_a_changed_one_is_measured_again(weights, tmp_path, monkeypatch):
    options = suite_in(tmp_path)
    run, evaluated = evaluate.run, []

    def stopped_at_the_second(evaluation, *arguments):
        evaluated.append(evaluation.name)
        if evaluation.name == "pairs":
            raise KeyboardInterrupt
        return run(evaluation, *arguments)

    monkeypatch.setattr(evaluate, "run", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        main([weights, *options])
    assert evaluated == ["colors", "pairs"]
    evaluated.clear()
    monkeypatch.setattr(evaluate, "run", lambda *given: evaluated.append(given[0].name) or run(*given))
    assert main([weights, *options]) == 0
    assert evaluated == ["pairs"]
    place = tmp_path / "out" / "colors.json"
    place.write_text(place.read_text().replace('"weights": "', '"weights": "0'))
    assert main([weights, *options]) == 0
    assert evaluated == ["pairs", "colors"]
    # Sources of the same names in another folder are other data.
    evaluated.clear()
    other = tmp_path / "other"
    other.mkdir()
    suite_in(other)
    assert main([weights, *options[:1], f"--data={other}", options[2]]) == 0
    assert evaluated == ["colors", "pairs"]


def test_one_data_set_that_cannot_be_evaluated_does_not_stop_the_others(weights, tmp_path, capsys):
    options = suite_in(tmp_path, TABLE.replace('["nowhere.tar", "colors.tar"]', '"empty.tar"'))
    (tmp_path / "empty.tar").write_bytes(b"no tar")
    assert main([weights, *options]) == 2
    said = without_phases(capsys.readouterr().err)
    assert "error: colors: " in said and said.endswith("error: 1 of 2 evaluations failed\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pairs.json"]


def test_options_of_one_data_set_are_not_for_a_suite(capsys):
    for option, hint in (
        ("--task=linear_probe", "; give --tasks"),
        ("--name=x", ""),
        ("--classes=x", ""),
        ("--root=x", "; give the folder as --data"),
    ):
        assert main(["weights", "--suite=clip27", option]) == 2
        name = option.partition("=")[0]
        assert f"{name} is for one data set, and not for --suite{hint}\n" in capsys.readouterr().err
    assert main(["weights", "--tasks=linear_probe"]) == 2
    assert "--tasks is for a --suite" in capsys.readouterr().err


def test_lists_of_class_names_that_the_sets_name_exist():
    from jaxclip.evaluate import prompts

    names = {one.classes for suite in suites.known() for one in suites.read(suite).values() if one.classes}
    assert names <= set(prompts.known()) and len(names) > 20


def test_of_published_prompts_each_set_has_its_own(tmp_path):
    recipe(tmp_path)
    data = "pairs.tar"
    keys = evaluate.keys("zeroshot_classification")
    assert keys is not None

    def prompts(given: str, one: suites.DataSet) -> str:
        found = suites.evaluation(one, "zeroshot_classification", keys, {"prompts": given}, str(tmp_path))
        return found["prompts"]

    flowers = suites.DataSet(("wds_vtab-flowers/test", data))
    imagenet = suites.DataSet(("wds_imagenet1k/test", data), classes="imagenet")
    assert prompts("folder", flowers) == "folder:flowers" and prompts("folder", imagenet) == "folder:imagenet1k"
    assert prompts("a.py:openai_imagenet", imagenet) == "a.py:openai_imagenet" and not prompts("a.py", flowers)
    assert prompts("own.json", suites.DataSet((data,))) == "own.json"
