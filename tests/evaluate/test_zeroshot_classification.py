"""Zero-shot accuracy compared with results by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set

from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import class_embeddings
from jaxclip.errors import UserError
from jaxclip.evaluate.zeroshot_classification import Evaluator, Prompts


def classify(table: dict[str, Any], images, classes, templates, devices: int = 1) -> tuple[Any, Any]:
    """The metrics but for the calibration, and the accuracy of each class."""
    encoder = LookUp(table, images, devices)
    result = Evaluator("data").run(encoder, None, NoRecords(), SkipLog(), Prompts(classes, templates))
    metrics = dict(result.metrics)
    assert 0 <= metrics.pop("expected_calibration_error") <= 1
    return metrics, result.further["per_class_recall"]


CLASSES = ("cat", "dog", "eel", "fox", "gnu")


def table() -> dict:
    return {f"a {name}": row for name, row in zip(CLASSES, np.eye(5), strict=True)}


@pytest.mark.parametrize("devices", (1, 8))
def test_accuracy_and_recall_of_each_class_that_occurs(devices):
    """Three cats of which two are found, one dog that is taken for a fox, two eels found."""
    images = embedded_set(np.eye(5)[[0, 0, 1, 3, 2, 2]], labels=[0, 0, 0, 1, 2, 2])
    metrics, per_class = classify(table(), images, CLASSES, ("a {c}",), devices)
    assert metrics == pytest.approx({"acc1": 4 / 6, "acc5": 1.0, "mean_per_class_recall": (2 / 3 + 0 + 1) / 3})
    assert per_class == pytest.approx({"cat": 2 / 3, "dog": 0.0, "eel": 1.0})


def test_top_five_of_six():
    names = (*CLASSES, "hen")
    angles = np.radians(10 * np.arange(6))
    embeddings = dict(zip(names, np.stack([np.cos(angles), np.sin(angles)], axis=1), strict=True))
    # Nearest to the first class and farthest from the last.
    images = embedded_set([[1, 0]] * 6, labels=list(range(6)))
    metrics, _ = classify(embeddings, images, names, ("{c}",))
    assert (metrics["acc1"], metrics["acc5"]) == pytest.approx((1 / 6, 5 / 6))


def test_there_is_no_top_five_below_five_classes():
    images = embedded_set(np.eye(5)[:2], labels=[0, 1])
    metrics, _ = classify(table(), images, CLASSES[:4], ("a {c}",))
    assert metrics == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0}


def test_images_without_a_label_are_left_out():
    images = embedded_set(np.eye(5)[:3], labels=[0, None, 1])
    metrics, per_class = classify(table(), images, CLASSES, ("a {c}",))
    assert metrics["acc1"] == 0.5 and per_class == {"cat": 1.0, "dog": 0.0}


def test_two_classes_of_one_name_are_two_classes():
    """Two classes with the same name (crane): the mean is over classes, the listing by name."""
    images = embedded_set(np.eye(2)[[0, 0, 0, 1]], labels=[0, 0, 0, 1])
    embeddings = {"crane": [1.0, 0.0]}
    metrics, per_class = classify(embeddings, images, ("crane", "crane"), ("{c}",))
    # Their texts are the same, so the first is what every image is taken for.
    assert metrics["mean_per_class_recall"] == pytest.approx((1.0 + 0.0) / 2)
    assert per_class == {"crane": 0.75}


def test_a_collapsed_model_always_predicts_the_first_class():
    images = embedded_set(np.ones((10, 3)), labels=[0, 1, 2, 3, 4] * 2)
    embeddings = {name: [1.0, 1.0, 1.0] for name in CLASSES}
    metrics, per_class = classify(embeddings, images, CLASSES, ("{c}",))
    assert metrics["acc1"] == 0.2
    assert per_class == {"cat": 1.0, "dog": 0.0, "eel": 0.0, "fox": 0.0, "gnu": 0.0}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([None, None], "no image has a class label (a .cls member, a label column) or tags"),
        ([5, None], "no record can be used: 1 x label 5 is outside the 5 classes (such as record 0)"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(labels, said):
    with pytest.raises(UserError) as caught:
        classify(table(), embedded_set(np.eye(5)[:2], labels), CLASSES, ("a {c}",))
    assert str(caught.value) == said


def test_a_label_outside_the_classes_does_not_end_a_run_but_is_counted():
    images, skips = embedded_set(np.eye(5)[:3], [0, 7, -1]), SkipLog()
    prompts = Prompts(CLASSES, ("a {c}",))
    result = Evaluator("data").run(LookUp(table(), images), None, NoRecords(), skips, prompts)
    assert result.metrics["acc1"] == 1.0
    assert skips.counts == {"label 7 is outside the 5 classes": 1, "label -1 is outside the 5 classes": 1}


def test_a_label_outside_the_classes_is_found_before_any_training():
    record, prompts = Record(b"", (), "a.tar:x", label=5), Prompts(CLASSES, ("a {c}",))
    with pytest.raises(UserError, match="label 5 is outside the 5 classes, in a.tar:x: the classes are not those of"):
        Evaluator("data").lacks(record, prompts)
    assert Evaluator("data").lacks(Record(b"", (), "x", label=4), prompts) == ""
    assert Evaluator("data").lacks(Record(b"", ("text",), "x"), prompts) == "no class label"


def test_templates_are_averaged_in_embedding_space():
    table = {"a cat": [1.0, 0.0], "one cat": [0.0, 1.0], "a dog": [-1.0, 0.0], "one dog": [0.6, 0.8]}
    found = class_embeddings(LookUp(table), None, ("cat", "dog"), ("a {c}", "one {c}"))
    expected = np.array([[1.0, 1.0], [-0.4, 0.8]])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


def test_templates_that_cancel_out_do_not_divide_by_zero():
    table = {"a cat": [1.0, 0.0], "no cat": [-1.0, 0.0]}
    np.testing.assert_array_equal(class_embeddings(LookUp(table), None, ("cat",), ("a {c}", "no {c}")), [[0, 0]])


@pytest.mark.parametrize(
    ("name", "content"), [("c.json", '["cat", "guinea pig"]'), ("c.txt", "\ufeffcat\r\n guinea pig \r\n")]
)
def test_class_names_are_those_of_the_file_or_else_of_the_source(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert Evaluator("data", name).prepare(NoRecords("eel", "newt"), str(tmp_path)).classes == ("cat", "guinea pig")
    assert Evaluator("data").prepare(NoRecords("eel"), str(tmp_path)).classes == ("eel",)


def test_phrases_are_the_given_ones_or_those_of_a_benchmark_folder_or_a_photo(tmp_path):
    (tmp_path / "set" / "test").mkdir(parents=True)
    (tmp_path / "set" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("one {c}\ntwo {c}\n")
    source, root = NoRecords("cat"), str(tmp_path)
    assert Evaluator("set", templates=("a {c}",)).prepare(source, root).templates == ("a {c}",)
    for data in ("set", "set/test", "set/test/", "folder:set"):
        assert Evaluator(data).prepare(source, root).templates == ("one {c}", "two {c}")
    assert Evaluator("other").prepare(source, root).templates == ("a photo of a {c}.",)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "classes is missing: data does not say its class names"),
        ("", "is not JSON"),
        ("[]", "must hold a list of class names"),
        ('{"cat": 1}', "must hold a list of class names"),
        ("[1, 2]", "must hold a list of class names"),
    ],
)
def test_class_names_that_cannot_be_read_are_one_line_that_begins_with_the_key(tmp_path, written, said):
    evaluator = Evaluator("data", "" if written is None else "classes.json")
    (tmp_path / "classes.json").write_text(written or "")
    with pytest.raises(UserError, match="^classes") as caught:
        evaluator.prepare(NoRecords(), str(tmp_path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_class_names_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^classes: no file {tmp_path}/none.json"):
        Evaluator("data", "none.json").prepare(NoRecords(), str(tmp_path))
    with pytest.raises(UserError, match=f"^classes: {tmp_path} cannot be read: Is a directory; give a FILE.json"):
        Evaluator("data", ".").prepare(NoRecords(), str(tmp_path))


def test_two_classes_have_an_area_under_the_curve():
    images = embedded_set([[1, 0], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], labels=[0, 0, 1, 1])
    metrics, _ = classify({"no": [1.0, 0.0], "yes": [0.0, 1.0]}, images, ("no", "yes"), ("{c}",))
    assert metrics == {"acc1": 0.75, "acc5": None, "mean_per_class_recall": 0.75, "roc_auc": 1.0}


def test_the_area_under_the_curve_is_not_of_rounded_probabilities():
    """At a scale of 100, margins of 0.5 and 0.6 both have a probability of 1."""
    images = embedded_set([[0.2, 0.7], [0.1, 0.7], [0.5, 0.4]], labels=[0, 1, 0])
    encoder = LookUp({"no": [1.0, 0.0], "yes": [0.0, 1.0]}, images)
    result = Evaluator("data").run(encoder, None, NoRecords(), SkipLog(), Prompts(("no", "yes"), ("{c}",)))
    assert result.metrics["roc_auc"] == 1


def test_images_with_tags_have_an_average_precision():
    """Several or none of each image; a class that no image has does not count."""
    rows = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]]
    images = embedded_set(rows, tags=[(0,), (0, 1), (1,), ()])
    table = dict(zip(("cat", "dog", "eel"), np.eye(3), strict=True))
    prompts = Prompts(("cat", "dog", "eel"), ("{c}",))
    result = Evaluator("data").run(LookUp(table, images), None, NoRecords(), SkipLog(), prompts)
    assert result.metrics == {"mean_average_precision": 1.0, "mean_average_precision_11_point": 1.0}
    assert result.further["per_class_average_precision"] == {"cat": 1.0, "dog": 1.0}
    assert result.summary == "zero-shot mean average precision 100.0% (2 classes)"
    other = embedded_set(rows, tags=[(1,), (0, 1), (1,), ()])
    result = Evaluator("data").run(LookUp(table, other), None, NoRecords(), SkipLog(), prompts)
    # Cats: second of four. Dogs: first, second, and last of those that are equal.
    assert result.further["per_class_average_precision"] == pytest.approx({"cat": 1 / 2, "dog": (1 + 1 + 3 / 4) / 3})


def test_the_worst_confusions_are_named():
    images = embedded_set(np.eye(5)[[0, 1, 1, 3, 2, 2]], labels=[0, 0, 0, 1, 2, 2])
    result = Evaluator("data").run(LookUp(table(), images), None, NoRecords(), SkipLog(), Prompts(CLASSES, ("a {c}",)))
    (confusions,) = [one for one in result.tables if one.title == "Most frequent confusions"]
    assert confusions.rows == {"dog → fox": ("100.0%", 1), "cat → dog": ("66.7%", 2)}
