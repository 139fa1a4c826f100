"""Effective robustness, compared with numpy's fit of logits and with results by hand."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest

from jaxclip.errors import UserError
from jaxclip.evaluate import __main__ as command
from jaxclip.evaluate import robustness
from jaxclip.evaluate.table import Column, Row

TABLE = "model,imagenet,v2,sketch\nsmall,60,48,20\nmiddle,70,60,24\nlarge,80,68,40\n"


def reference(tmp_path: pathlib.Path, text: str = TABLE) -> robustness.Reference:
    (tmp_path / "reference.csv").write_text(text)
    return robustness.read(tmp_path / "reference.csv")


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def row(model: str, **accuracies: float | None) -> Row:
    figures = {Column(name, "zeroshot_classification", "acc1"): value for name, value in accuracies.items()}
    return Row(model, figures, {})


def added(rows: list[Row]) -> list[dict[str, float | None]]:
    columns = [
        {column: value for column, value in one.figures.items() if column.task == robustness.TASK} for one in rows
    ]
    return [{column.dataset: value for column, value in of_model.items()} for of_model in columns]


def test_it_is_the_height_above_a_least_squares_line_of_logits(tmp_path):
    found = reference(tmp_path).effective({"imagenet": 0.65, "v2": 0.7, "sketch": 0.1, "other": 0.5})
    inside = [logit(share) for share in (0.6, 0.7, 0.8)]
    expected = {}
    for name, shares, own in (("v2", (0.48, 0.6, 0.68), 0.7), ("sketch", (0.2, 0.24, 0.4), 0.1)):
        slope, intercept = np.polyfit(inside, [logit(share) for share in shares], 1)
        expected[name] = own - 1 / (1 + math.exp(-(slope * logit(0.65) + intercept)))
    assert found == pytest.approx(expected, rel=1e-9)
    assert found["v2"] > 0 > found["sketch"]


def test_models_on_the_line_have_none(tmp_path):
    def on_line(share: float) -> float:
        return 1 / (1 + math.exp(-(0.8 * logit(share) - 0.7)))

    lines = "".join(f"m{share},{share},{on_line(share)!r}\n" for share in (0.3, 0.5, 0.6, 0.9))
    found = reference(tmp_path, f"model,a,b\n{lines}")
    assert tuple(found.fit("b")) == pytest.approx((0.8, -0.7), rel=1e-9)
    for share in (0.1, 0.55, 0.95):
        assert found.effective({"a": share, "b": on_line(share)})["b"] == pytest.approx(0, abs=1e-9)


def test_two_models_by_hand(tmp_path):
    """Odds of 1 and 4 in distribution, of 1/4 and 1 out of it: the line quarters the odds."""
    found = reference(tmp_path, "model,a,b\nx,0.5,0.2\ny,0.8,0.5\n")
    assert found.effective({"a": 2 / 3, "b": 0.5})["b"] == pytest.approx(0.5 - 1 / 3)


def test_clip_is_far_above_models_of_its_accuracy(tmp_path):
    """Of the same ImageNet accuracy as a ResNet-101, 76.2 (Radford et al. 2021, figure 13).

    Where the line goes through that model, effective robustness is the plain difference.
    """
    names = "imagenet,v2,r,objectnet,sketch,a"
    resnet = "76.2,64.3,37.7,32.6,25.2,2.7"
    found = reference(tmp_path, f"model,{names}\nresnet101,{resnet}\nother,50,40,20,20,10,1\n")
    clip = {"imagenet": 0.762, "v2": 0.701, "r": 0.889, "objectnet": 0.723, "sketch": 0.602, "a": 0.771}
    (columns,) = added(robustness.with_robustness([row("clip", **clip)], found))
    differences = {"v2": 0.058, "r": 0.512, "objectnet": 0.397, "sketch": 0.35, "a": 0.744}
    assert columns == pytest.approx(differences | {robustness.MEAN: 0.4122}, abs=1e-9)


def test_percentages_and_fractions_are_one_table(tmp_path):
    fractions = "model,imagenet,v2,sketch\nsmall,0.6,0.48,0.2\n\nmiddle,0.7,0.6,.24\nlarge,0.8,0.68,0.4\n"
    one, other = reference(tmp_path), reference(tmp_path, fractions)
    np.testing.assert_allclose(one.accuracy, other.accuracy, rtol=1e-12)
    assert one.fit("v2") == pytest.approx(other.fit("v2"), rel=1e-9)
    assert reference(tmp_path, TABLE.replace("20", "0.7 ")).shifted["sketch"][0] == pytest.approx(0.007)
    assert reference(tmp_path, TABLE.replace("60,48", "60%,48%")).accuracy[0] == pytest.approx(0.6)


def test_an_empty_cell_is_left_out_of_that_fit_alone(tmp_path):
    found = reference(tmp_path, TABLE.replace("60,24", ",24"))
    assert found.fit("v2") == pytest.approx(reference(tmp_path, TABLE.replace("middle,70,60,24\n", "")).fit("v2"))
    assert found.fit("sketch") == pytest.approx(reference(tmp_path).fit("sketch"))


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_a_model_that_finds_none_or_all_has_a_figure(tmp_path, accuracy):
    found = reference(tmp_path).effective({"imagenet": accuracy, "v2": accuracy})
    assert found == {"v2": 0.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must begin with a line of names such as model,imagenet,imagenetv2"),
        ("model,imagenet\na,0.5\n", "must begin with a line of names"),
        ("model,a,b,b\nx,0.5,0.5,0.5\n", "must begin with a line of names"),
        ("model,a,b\nx,0.5\n", "x has 1 figures for 2 data sets"),
        ("model,a,b\nx,0.5,much\n", "much of x is no accuracy; leave unknown ones empty"),
        ("model,a,b\nx,nan,0.5\n", "nan of x is no accuracy"),
        ("model,a,b\nx,,0.5\n", "x has no accuracy on a, the first data set"),
        ("model,a,b\nx,0.5,0.4\ny,60,50\n", "a has fractions and percentages: x has 0.5 and y 60"),
        ("model,a,b\nx,0.5,40\ny,0.6,50\n", "40 of x on b must lie between 0 and 1"),
        ("model,a,b\nx,50,0\ny,60,50\n", "0 of x on b must lie between 0 and 100, which themselves have no logit"),
        ("model,a,b\nx,100,40\ny,60,50\n", "100 of x on a must lie between 0 and 100"),
        ("model,a,b\n", "fewer than two models of different a accuracy with a figure of b"),
        ("model,a,b\nx,0.5,0.4\n", "fewer than two models of different a accuracy"),
        ("model,a,b\nx,0.5,0.4\ny,0.5,0.3\n", "fewer than two models of different a accuracy"),
        ("model,a,b\nx,0.5,0.4\ny,0.6,\n", "fewer than two models of different a accuracy"),
    ],
)
def test_a_table_through_which_there_is_no_line_is_one_line(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        reference(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"--robustness: {tmp_path / 'reference.csv'}") and "\n" not in message
    assert said in message


def test_a_table_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="none.csv cannot be read: No such file"):
        robustness.read(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"model,a\xff")
    with pytest.raises(UserError, match="bytes.csv is no csv table in UTF-8"):
        robustness.read(tmp_path / "bytes.csv")


def test_a_model_without_the_accuracies_has_no_columns(tmp_path):
    rows = [row("whole", imagenet=0.7, v2=0.6), row("no shift", imagenet=0.7), row("no base", v2=0.6, imagenet=None)]
    found = added(robustness.with_robustness(rows, reference(tmp_path)))
    assert [set(one) for one in found] == [{"v2", robustness.MEAN}, set(), set()]
    with pytest.raises(UserError, match="no model has acc1 of imagenet and of one of v2, sketch"):
        robustness.with_robustness(rows[1:], reference(tmp_path))


def test_the_command_adds_the_columns(tmp_path, capsys):
    for dataset, accuracy in (("imagenet", 0.7), ("v2", 0.5)):
        result = {"dataset": dataset, "task": "zeroshot_classification", "model": "clip", "pretrained": "run@9"}
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{dataset}.json").write_text(json.dumps(result | {"metrics": {"acc1": accuracy}}))
    (tmp_path / "reference.csv").write_text("model,imagenet,v2\na,0.6,0.5\nb,0.7,0.6\n")
    flags = ["--table", str(tmp_path / "results"), f"--robustness={tmp_path / 'reference.csv'}"]
    assert command.main(flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| model | imagenet acc1 | v2 acc1 | v2 effective_robustness | mean of shifts effective_robustness |",
        "| --- | --: | --: | --: | --: |",
        "| clip run@9 | 70.0 | 50.0 | -10.0 | -10.0 |",
    ]
    assert command.main(["runs/x", flags[-1]]) == 2
    assert "--robustness is for --table" in capsys.readouterr().err
