"""Linear SVMs on features compared with results by hand and with scikit-learn's own search of the cost."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set
from made_source import MadeSource
from paths import ROOT
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC
from test_encoder import ImageMethod, encoder_of

from jaxclip import evaluate
from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import EmbeddedSet
from jaxclip.errors import UserError
from jaxclip.evaluate import linear_svm, on_features
from jaxclip.evaluate.linear_svm import Evaluator
from jaxclip.evaluate.on_features import Further

TRAIN, TEST = NoRecords(), NoRecords()


class TwoSets(LookUp):
    """An encoder whose features of two sources are given."""

    def __init__(self, train: EmbeddedSet, test: EmbeddedSet):
        super().__init__({})
        self.sets = {id(TRAIN): train, id(TEST): test}
        self.asked: list[str] = []

    def source(self, variables, source, skips, ids=None, function="encode_image"):
        self.asked.append(function)
        return self.sets[id(source)]


def run(train: EmbeddedSet, test: EmbeddedSet, names: tuple[str, ...] = (), skips=None) -> evaluate.Result:
    encoder = TwoSets(train, test)
    result = Evaluator("data", "train").run(encoder, None, TEST, skips or SkipLog(), Further({"train": TRAIN}, names))
    assert encoder.asked == ["features", "features"]
    return result


def drawn(seed: int, count: int, classes: int = 3, noise: float = 1.0) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Features of images that have each class with a chance of a quarter, and their classes."""
    rng = np.random.default_rng(seed)
    have = rng.random((count, classes)) < 0.25
    features = have @ np.random.default_rng(99).standard_normal((classes, 12)) + noise * rng.standard_normal(
        (count, 12)
    )
    return features, [tuple(map(int, np.flatnonzero(row))) for row in have]


def tagged(seed: int, count: int, **keys) -> EmbeddedSet:
    features, tags = drawn(seed, count, **keys)
    return embedded_set(features, tags=tags)


def labeled(seed: int, count: int, classes: int = 3, noise: float = 1.0) -> EmbeddedSet:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    centers = np.random.default_rng(99).standard_normal((classes, 12))
    return embedded_set(centers[labels] + noise * rng.standard_normal((count, 12)), labels=labels.tolist())


def by_hand(relevant: np.ndarray, scores: np.ndarray) -> float:
    """The mean over relevant images of the share of relevant ones among those that rank as high."""
    ranked = relevant[np.argsort(-scores)]
    return float(np.mean([ranked[: rank + 1].mean() for rank in np.flatnonzero(ranked)]))


def test_average_precision_is_the_mean_of_the_precisions_at_the_relevant_images():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    relevant = np.array([True, False, True, False, True])
    assert linear_svm.average_precision(relevant, scores) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # The mean of VOC's eleven points would be (4 * 1 + 3 * 2/3 + 4 * 3/5) / 11.
    assert linear_svm.average_precision(relevant, scores) != pytest.approx((4 + 2 + 12 / 5) / 11)


def test_each_class_is_ranked_by_the_machine_whose_cost_cross_validates_best():
    train, test = tagged(0, 200, noise=0.7), tagged(1, 150, noise=0.7)
    result = run(train, test, ("dog", "cat", "bird"))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train.outputs, test.outputs))
    expected, costs = {}, []
    for index, name in enumerate(("dog", "cat", "bird")):
        target = np.array([index in tags for tags in train.tags])
        machine = LinearSVC(class_weight={True: 2, False: 1}, dual=False, max_iter=2000)
        search = GridSearchCV(machine, {"C": [0.01, 0.1, 1, 10]}, cv=3, scoring="average_precision")
        search.fit(x.astype(float), target)
        costs.append(f"{search.best_params_['C']:g}")
        truth = np.array([index in tags for tags in test.tags])
        expected[name] = by_hand(truth, search.decision_function(y.astype(float)))
    assert result.further["per_class_average_precision"] == pytest.approx(expected, abs=1e-6)
    assert result.metrics == {"mean_average_precision": pytest.approx(np.mean(list(expected.values())), abs=1e-6)}
    assert 0.4 < result.metrics["mean_average_precision"] < 0.97 and len(set(costs)) > 1
    whole, by_class = result.tables
    assert whole.rows == {"": (result.metrics["mean_average_precision"],)}
    assert [row[1] for row in by_class.rows.values()] == costs
    assert [row[2] for row in by_class.rows.values()] == [sum(i in tags for tags in test.tags) for i in range(3)]
    assert result.summary == f"linear SVMs' mean average precision {np.mean(list(expected.values())):.1%} (3 classes)"


def test_images_of_one_label_have_an_accuracy_too():
    train, test = labeled(0, 120, noise=0.1), labeled(1, 60, noise=0.1)
    assert run(train, test).metrics == pytest.approx({"mean_average_precision": 1, "acc1": 1})
    wrong = dataclasses.replace(test, labels=[(label + (row < 15)) % 3 for row, label in enumerate(test.labels)])
    assert run(train, wrong).metrics["acc1"] == 0.75


def test_labels_are_tags_of_one_each():
    train, test = labeled(0, 90), labeled(1, 60)
    as_tags = [dataclasses.replace(part, tags=[(label,) for label in part.labels]) for part in (train, test)]
    metrics = run(*as_tags).metrics
    assert metrics == {"mean_average_precision": run(train, test).metrics["mean_average_precision"]}


def test_tags_go_before_the_label():
    train, test = tagged(0, 90), tagged(1, 60)
    both = dataclasses.replace(test, labels=[9] * 60)
    assert run(train, both).metrics == run(train, test).metrics


def test_features_have_unit_length():
    rng = np.random.default_rng(3)
    train, test = labeled(0, 90), labeled(1, 60)
    scaled = [
        dataclasses.replace(part, outputs=part.outputs * rng.uniform(0.1, 100, (len(part.ids), 1)).astype(np.float32))
        for part in (train, test)
    ]
    assert run(*scaled).metrics == pytest.approx(run(train, test).metrics, abs=1e-3)


def test_features_of_another_precision_are_taken():
    train, test = labeled(0, 90, noise=0.1), labeled(1, 60, noise=0.1)
    halved = [dataclasses.replace(part, outputs=np.asarray(jnp.bfloat16(part.outputs))) for part in (train, test)]
    assert run(*halved).metrics == pytest.approx({"mean_average_precision": 1, "acc1": 1})


def test_a_class_that_the_test_images_lack_is_left_out():
    train, test = labeled(0, 120, classes=4), labeled(1, 60, classes=3)
    result = run(train, test, ("a", "b", "c", "d"))
    assert list(result.further["per_class_average_precision"]) == ["a", "b", "c"]
    # Even if it has too few training images.
    few = dataclasses.replace(train, labels=[label if label < 3 or row < 5 else None
                                             for row, label in enumerate(train.labels)])  # fmt: skip
    assert run(few, test, ("a", "b", "c", "d")).metrics["mean_average_precision"] > 0.4


def test_images_without_classes_are_left_out():
    train, test = labeled(0, 90), labeled(1, 60)
    unknown = dataclasses.replace(test, labels=[*test.labels[:40], *[None] * 20])
    known = embedded_set(test.outputs[:40], labels=test.labels[:40])
    assert run(train, unknown).metrics == run(train, known).metrics
    # An image with no tag is a negative of every class, and none of unknown classes.
    tags = tagged(1, 60)
    assert () in tags.tags
    without = [row for row, found in enumerate(tags.tags) if found]
    fewer = embedded_set(tags.outputs[without], tags=[tags.tags[row] for row in without])
    assert run(tagged(0, 90), tags).metrics != run(tagged(0, 90), fewer).metrics


def test_images_of_classes_outside_the_names_are_counted():
    train, test = labeled(0, 90, classes=3), labeled(1, 60, classes=3)
    skips = SkipLog()
    result = run(train, test, ("a", "b"), skips)
    assert list(result.further["per_class_average_precision"]) == ["a", "b"]
    assert skips.counts == {"label 2 is outside the 2 classes": 50}


def test_classes_of_the_same_name_are_two():
    result = run(labeled(0, 90), labeled(1, 60), ("crane", "crane", "dog"))
    assert list(result.further["per_class_average_precision"]) == ["crane 0", "crane 1", "dog"]
    assert list(run(labeled(0, 90), labeled(1, 60)).tables[1].rows) == ["class 0", "class 1", "class 2"]


def some(labels: list[int | None]) -> EmbeddedSet:
    return embedded_set(np.random.default_rng(0).standard_normal((len(labels), 4)), labels=labels)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 0, 0, 1, 1, 1], [0, 1, 2], "train has 0 images of class 2, which data has; 3 are needed for 3-fold"),
        ([0, 0, 0, 1, 1, 2], [0, 1], "train has 2 images of class 1, which data has; 3 are needed for 3-fold"),
        ([1, 1, 1, 1], [1, 1], "train has 0 images that are not of class 1; 3 are needed for 3-fold"),
        ([None, None], [0, 1], "train: no image has a class label .* or tags"),
        ([0, 0, 0, 1, 1, 1], [None], "data: no image has a class label .* or tags"),
        ([0, 0, 0, 1, 1, 1], [-1], "data: no record can be used: 1 x label -1 is negative"),
    ],
)
def test_classes_that_cannot_be_learned_are_one_line(train, test, said):
    with pytest.raises(UserError, match=f"^{said}") as caught:
        run(some(train), some(test))
    assert "\n" not in str(caught.value)


def test_test_images_without_any_tag_are_one_line():
    with pytest.raises(UserError, match="^data: no image has a class$"):
        run(tagged(0, 30), embedded_set(np.eye(12), tags=[()] * 12))


def test_features_that_are_not_finite_are_one_line():
    broken = labeled(0, 90)
    broken.outputs[7, 3] = np.nan
    with pytest.raises(UserError, match="^train: the model's features have numbers that are not finite$"):
        run(broken, labeled(1, 60))


def test_costs_for_which_the_solver_does_not_converge_are_silent(monkeypatch, capfd):
    monkeypatch.setattr(linear_svm, "_ITERATIONS", 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tagged(0, 200), tagged(1, 60))
    assert not caught and capfd.readouterr() == ("", "")


def test_processes_share_the_classes_and_get_the_same_result(monkeypatch):
    train, test = tagged(0, 120, classes=5), tagged(1, 60, classes=5)
    alone = run(train, test)
    parts = []

    class Sent(Exception):
        pass

    def send(value):
        parts.append(json.loads(json.dumps(value)))
        raise Sent

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(linear_svm, "gather", send)
        with pytest.raises(Sent):
            run(train, test)
    assert [[index for index, *_ in part] for part in parts] == [[0, 2, 4], [1, 3]]
    monkeypatch.setattr(linear_svm, "gather", lambda value: parts)
    assert run(train, test) == alone


@dataclasses.dataclass(frozen=True)
class Colored(MadeSource):
    """Images of a color that their tags, or their labels, say."""

    tags: bool = False

    def record(self, index: int) -> Record:
        have = tuple(tag for tag in range(3) if index >> tag & 1)
        pixels = np.full((4, 4, 3), [250 if tag in have else 5 * (index % 7) for tag in range(3)], np.uint8)
        return Record(pixels, (), str(index), label=None if self.tags else index % 2, tags=have if self.tags else None)


def test_tags_and_labels_come_along_with_the_features_of_a_source():
    encoder, variables = encoder_of(4)
    train, test = Colored(40, tags=True), Colored(19, tags=True)
    sets = [encoder.source(variables, source, SkipLog(), function="features") for source in (train, test)]
    assert sets[1].tags == [test.record(index).tags for index in range(19)]
    assert encoder.source(variables, Colored(5), SkipLog(), function="features").tags == [None] * 5
    result = Evaluator("data", "train").run(encoder, variables, test, SkipLog(), Further({"train": train}, ()))
    assert result == run(*sets) and result.metrics["mean_average_precision"] > 0.9


def test_a_recipe_names_the_two_sources():
    found = evaluate.from_config({"voc": {"task": "linear_svm", "data": "test.tar", "train": "train.tar"}})
    assert found == {"voc": Evaluator("test.tar", "train.tar")}
    evaluate.check(found, ImageMethod())
    with pytest.raises(UserError, match=r"config\.evals\.voc\.train is missing"):
        evaluate.from_config({"voc": {"task": "linear_svm", "data": "test.tar"}})


def test_training_images_that_cannot_be_used_are_found_out_before_any_training(monkeypatch):
    with pytest.raises(UserError, match="^train: .*none.tar"):
        Evaluator("data", "none.tar").prepare(NoRecords(), "")
    monkeypatch.setattr(on_features, "open_source", lambda name, root: Colored(20, class_names=("left", "right")))
    assert Evaluator("data", "train").prepare(NoRecords("left", "right"), "").class_names == ("left", "right")
    assert Evaluator("data", "train").prepare(NoRecords(), "").class_names == ("left", "right")
    with pytest.raises(UserError, match=r"^train: its 2 classes \(left, .* are not the 2 of data \(right, l"):
        Evaluator("data", "train").prepare(NoRecords("right", "left"), "")
    monkeypatch.setattr(on_features, "open_source", lambda name, root: Colored(20, class_names=("left",)))
    with pytest.raises(UserError, match="^train: label 1 is outside the 1 classes, in 1$"):
        Evaluator("data", "train").prepare(NoRecords(), "")


def test_records_without_classes_cannot_be_evaluated():
    evaluator, prepared = Evaluator("data", "train"), Further({"train": NoRecords()}, ("a", "b"))
    assert evaluator.lacks(Record(b"", (), "x"), prepared) == "no class label or tags"
    assert evaluator.lacks(Record(b"", (), "x", label=1), prepared) == ""
    assert evaluator.lacks(Record(b"", (), "x", tags=()), prepared) == ""
    with pytest.raises(UserError, match="^label 2 is outside the 2 classes, in x$"):
        evaluator.lacks(Record(b"", (), "x", tags=(0, 2)), prepared)


def test_scikit_learn_is_imported_when_it_runs_alone():
    program = "import sys; from jaxclip.evaluate import linear_svm; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=300).returncode == 0
