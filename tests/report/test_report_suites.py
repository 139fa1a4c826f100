"""Evaluations of many data sets, of few images and of shifted data in the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from report_workdir import HOSTILE, Page, page_of, write_classification, write_evaluation

from jaxclip.errors import UserError
from jaxclip.evaluate import robustness
from jaxclip.report import __main__ as command
from jaxclip.report import write

REFERENCE = "model,imagenet,v2,sketch\nsmall,60,48,20\nmiddle,70,60,24\nlarge,80,68,40\n"


def part(page: Page, heading: str) -> str:
    return page.source.split(f"<h2>{heading}</h2>")[1].split("<section>")[0]


def bars(source: str) -> list[tuple[str, str, str]]:
    """The name, the width and the figure of each bar."""
    found = re.findall(r'class="name">(.*?)</span>.*?<i style="width:(.*?)%"></i>.*?class="value">(.*?)<', source)
    return [(name, width, value) for name, width, value in found]


def probe(workdir, name: str, data: str, fewer: dict, whole: float | None = 0.9) -> None:
    metrics = {} if whole is None else {"lp_acc1": whole}
    write_evaluation(workdir, 10, name, metrics, task="linear_probe", data=data, fewer_images=fewer)


def reference(tmp_path, text: str = REFERENCE) -> robustness.Reference:
    (tmp_path / "reference.csv").write_text(text)
    return robustness.read(tmp_path / "reference.csv")


def test_three_data_sets_of_a_task_are_bars_with_chance_and_the_best_first(tmp_path):
    for name, top in (("cars", 0.25), ("food", 0.75), ("pets", 0.5)):
        write_classification(tmp_path, 10, name, {"a": top, "b": top})
    page = page_of(tmp_path)
    (figure,) = re.findall('<figure class="suite">.*?</figure>', page.source)
    assert bars(figure) == [("food", "75.0", "75.0%"), ("pets", "50.0", "50.0%"), ("cars", "25.0", "25.0%")]
    assert figure.count('<b style="left:1.2%" title="chance 1.2%">') == 3
    assert "Zero-shot classification: top-1" in figure and "mean of 3 sets 50.0%" in figure


def test_two_data_sets_stay_in_their_table(workdir):
    assert not page_of(workdir).all("figure", "suite")


def test_data_sets_of_other_figures_have_bars_of_their_own(tmp_path):
    for index in range(3):
        write_classification(tmp_path, 10, f"labels{index}", {"a": 0.5})
        ranks = {"title": "Rank", "columns": ["rank"], "rows": {"": [2.0 + index]}}
        write_evaluation(tmp_path, 10, f"rank{index}", {}, task="ranks", tables=[ranks], headline=["2", "rank"])
        write_evaluation(tmp_path, 10, f"text{index}", {}, task="texts", tables=[{**ranks, "rows": {"": ["no"]}}])
    figures = re.findall('<figure class="suite">.*?</figure>', page_of(tmp_path).source)
    assert len(figures) == 2
    assert bars(figures[1]) == [("rank0", "50.0", "2"), ("rank1", "75.0", "3"), ("rank2", "100.0", "4")]
    assert "chance" not in figures[1]


def test_of_forty_data_sets_tables_fold_and_the_steps_show_the_mean(tmp_path):
    for index in range(40):
        for step in (10, 20) if index < 20 else (20,):
            write_classification(tmp_path, step, f"set{index}", {"a": (index + step) / 100})
    page = page_of(tmp_path)
    assert "Zero-shot classification: 40 rows" in page.text and len(bars(page.source)) >= 40
    assert "Zero-shot classification: top-1, mean of 20 data sets" in page.text
    learning = part(page, "Learning")
    (series,) = json.loads(re.findall('data-series="(.*?)"', learning)[0].replace("&quot;", '"'))
    assert series[2:] == [[10, 20], ["19.5%", "29.5%"]]


def test_of_many_data_sets_the_classes_and_images_of_the_first_few_are_shown(tmp_path):
    examples = [{"image": "data:image/webp;base64,UklGRg==", "text": "x", "right": True}]
    for index in range(9):
        write_classification(tmp_path, 10, f"set{index}", {"a": 0.5, "b": 0.5}, examples=examples)
    page = page_of(tmp_path)
    assert page.text.count("3 more data sets") == 2
    for heading in ("Accuracy per class", "Examples"):
        shown, folded = part(page, heading).split("<details>")
        assert (shown.count("<figure"), folded.count("<figure")) == (6, 3)


def test_few_shot_accuracies_stand_on_a_logarithmic_axis_with_all_images_at_the_end(tmp_path):
    probe(tmp_path, "pets_probe", "pets.tar", {"16shot": [0.8], "1shot": [0.2, 0.4], "4shot": [0.6, 0.6], "1%": [0.1]})
    source = part(page_of(tmp_path), "Learning from few images")
    labels = re.findall(r'class="x" style="left:(.*?)%">(.*?)<', source)
    assert [label for _, label in labels] == ["1", "4", "16", "all"]
    places = [float(place) for place, _ in labels]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1]) and places[3] == 100
    titles = re.findall("<title>(.*?)</title>", source)
    assert sorted(titles) == [
        "1 image of each class: 30.0% ± 10.0%",
        "16 images of each class: 80.0% ± 0.0%",
        "4 images of each class: 60.0% ± 0.0%",
        "all images: 90.0%",
    ]
    assert "deviation of 2 draws" in source and "zero-shot" not in source
    # The axis goes from 20% to 100% or less: the whisker of one image begins at its lower end.
    assert re.findall(r'class="whisker c0" d="M0 (\d+)V(\d+)"', source) == [("2000", "1500")]


def test_the_zero_shot_accuracy_of_the_same_data_is_a_line_across(tmp_path):
    for name in ("pets_probe", "cars_probe"):
        probe(tmp_path, name, name.replace("_probe", ".tar"), {"1shot": [0.2], "2shot": [0.4]}, None)
    write_classification(tmp_path, 10, "pets", {"a": 0.3}, data="pets.tar")
    source = part(page_of(tmp_path), "Learning from few images")
    cars, pets = re.findall("<figure.*?</figure>", source)
    assert "zero-shot 30.0%" in pets and re.search(r'class="line c1 dashed" d="M0 1000L2000 1000"', pets)
    assert "zero-shot" not in cars and "all" not in re.findall(r'class="x"[^>]*>(.*?)<', cars)


@pytest.mark.parametrize("fewer", [None, [], {"1%": [0.5]}, {"1shot": []}, {"0shot": [0.5]}, {"1shot": ["x"]}, {"": 3}])
def test_probes_without_shots_have_no_plot(tmp_path, fewer):
    probe(tmp_path, "pets", "pets.tar", fewer)
    assert "Learning from few images" not in page_of(tmp_path).headings


def test_the_run_stands_among_reference_models(tmp_path):
    for step, inside, shifted in ((10, 0.6, 0.5), (20, 0.7, 0.75)):
        write_classification(tmp_path, step, "imagenet", {"a": inside})
        write_classification(tmp_path, step, "v2", {"a": shifted})
    found = reference(tmp_path)
    page = Page(write(tmp_path, None, {}, found).read_text())
    source = part(page, "Effective robustness")
    assert source.count("<figure") == 1, "sketch was not evaluated"
    titles = re.findall("<title>(.*?)</title>", source)
    assert titles[:3] == ["small: 60.0%, 48.0%", "middle: 70.0%, 60.0%", "large: 80.0%, 68.0%"]
    assert titles[3:] == ["this run at step 10: 60.0%, 50.0%", "this run at step 20: 70.0%, 75.0%"]
    assert len(page.all("path", "own")) == 1
    predicted = found.fit("v2").predicted(0.7)
    assert f"v2 75.0% {predicted:.1%} +{100 * (0.75 - predicted):.1f}" in page.text


def test_places_are_those_of_logits_and_the_fit_goes_through_its_models(tmp_path):
    """Reference models on y = x, so that the fit and the diagonal are one line, on which the run is, too."""
    write_classification(tmp_path, 10, "a", {"x": 0.5})
    write_classification(tmp_path, 10, "b", {"x": 0.5})
    text = "model,a,b\nlow,0.1,0.1\nhigh,0.9,0.9\n"
    source = part(Page(write(tmp_path, None, {}, reference(tmp_path, text)).read_text()), "Effective robustness")
    dots = [tuple(map(int, place)) for place in re.findall(r'class="dots [^"]*" d="M(\d+) (\d+)h0"', source)]
    assert dots[2] == (1000, 1000) and all(x + y == 2000 for x, y in dots)
    lines = re.findall(r'class="line (?:c0|soft dashed)" d="(.*?)"', source)
    assert lines == ["M0 2000L2000 0"] * 2
    assert "logit(y) = 1.00 logit(x)" in source


@pytest.mark.parametrize("accuracies", [(0.0, 1.0), (1.0, 0.0), (0.7, 0.01), (0.02, 0.99)])
def test_dots_and_lines_of_any_accuracies_stay_in_the_plot(tmp_path, accuracies):
    for name, value in zip(("imagenet", "v2"), accuracies, strict=True):
        write_classification(tmp_path, 10, name, {"a": value})
    source = part(Page(write(tmp_path, None, {}, reference(tmp_path)).read_text()), "Effective robustness")
    numbers = [int(number) for path in re.findall(r' d="(M.*?)"', source) for number in re.findall(r"-?\d+", path)]
    assert numbers and all(0 <= number <= 2000 for number in numbers)
    places = [float(place) for place in re.findall(r'class="[xy]" style="\w+:(.*?)%"', source)]
    assert all(0 <= place <= 100 for place in places)


def test_a_run_without_the_data_sets_is_one_line(tmp_path):
    write_classification(tmp_path, 10, "imagenet", {"a": 0.5})
    with pytest.raises(UserError, match="no model has acc1 of imagenet and of one of v2, sketch"):
        write(tmp_path, None, {}, reference(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_right_and_wrong_answers_are_rows_of_their_own(tmp_path):
    url = "data:image/webp;base64,UklGRg=="
    marks = {"cat": True, "dog, taken for cat": False, "plain": None, "odd": "yes"}
    examples = [{"image": url, "text": text, "right": right} for text, right in marks.items()]
    write_evaluation(tmp_path, 10, "pets", {"acc1": 0.5}, task="zeroshot_classification", examples=examples)
    page = page_of(tmp_path)
    assert "right cat wrong dog, taken for cat plain odd" in page.text
    assert len(page.all("ol", "examples")) == 3


def test_hostile_names_are_escaped_in_every_plot(tmp_path):
    for index, name in enumerate((HOSTILE, HOSTILE + "2", HOSTILE + "3")):
        write_classification(tmp_path, 10, name, {"a": 0.5 + index / 10}, data=HOSTILE)
    probe(tmp_path, HOSTILE + "4", HOSTILE, {"1shot": [0.2]})
    url = "data:image/webp;base64,UklGRg=="
    examples = [{"image": url, "text": f"{HOSTILE} {'long ' * 40}", "right": True}]
    write_evaluation(tmp_path, 10, HOSTILE + "5", {"x": 1.0}, examples=examples)
    shapes = np.array([0.5, 0.6])
    found = robustness.Reference((HOSTILE, "b"), HOSTILE, shapes, {HOSTILE + "2": shapes})
    page = Page(write(tmp_path, None, {}, found).read_text())
    assert {"Learning from few images", "Effective robustness", "Examples"} <= set(page.headings)
    assert len(page.all("script")) == 1 and len(page.all("img")) == 1
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)


def test_the_command_writes_the_page_of_a_run_without_its_model(tmp_path, capsys):
    write_classification(tmp_path, 10, "imagenet", {"a": 0.7})
    write_classification(tmp_path, 10, "v2", {"a": 0.6})
    reference(tmp_path)
    assert command.main([str(tmp_path), f"--robustness={tmp_path / 'reference.csv'}"]) == 0
    said = capsys.readouterr()
    assert said.out == f"report: {tmp_path / 'report.html'}\n" and "without images" in said.err
    assert "Effective robustness" in (tmp_path / "report.html").read_text()
    assert command.main([str(tmp_path / "none")]) == 2
    assert "none to report on" in capsys.readouterr().err
    assert command.main([str(tmp_path), f"--robustness={tmp_path / 'none.csv'}"]) == 2
    assert "none.csv cannot be read" in capsys.readouterr().err


def test_the_command_has_a_usage_message():
    done = subprocess.run([sys.executable, "-m", "jaxclip.report", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--robustness" in done.stdout
