"""The linear probe: its search, the images that it learns from, and its figures."""

from __future__ import annotations

import socket
import subprocess
import sys

import numpy as np
import pytest
import sklearn.linear_model
from commands import environment
from look_up import LookUp, NoRecords, embedded_set, mesh_of
from paths import TESTS

from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError
from jaxclip.evaluate import linear_probe
from jaxclip.evaluate.linear_probe import Evaluator, Features, fitted, share_of, shots_of
from jaxclip.evaluate.on_features import Further

CLASSES = 5


def drawn(seed: int, rows: int, noise: float = 1.0) -> Features:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((CLASSES, 8))
    labels = rng.integers(0, CLASSES, rows)
    return Features((centers[labels] + noise * rng.standard_normal((rows, 8))).astype(np.float32), labels)


class Given(NoRecords):
    """A source whose features are known."""

    def __init__(self, features: Features):
        super().__init__()
        self.embedded = embedded_set(features.rows, features.labels.tolist())


class Encoded(LookUp):
    """An encoder of such sources."""

    def source(self, variables, source, skips, ids=None, function="encode_image"):
        assert function == "features"
        return source.embedded


def run(test: Features, train: Features, validation: Features | None = None, names=(), **keys):
    further = {"train": Given(train)} | ({} if validation is None else {"validation": Given(validation)})
    prepared = Further(further, names)
    return Evaluator("data", train="train", **keys).run(Encoded({}), None, Given(test), SkipLog(), prepared)


def test_the_strength_is_searched_as_in_the_paper():
    """Seven first, and two at each halving, the best of which scikit-learn finds among all 97, too."""
    train, validation = drawn(1, 60), drawn(2, 400)
    found = fitted(mesh_of(1), train, validation, CLASSES)
    accuracies = {}
    for number in range(-48, 49):
        machine = sklearn.linear_model.LogisticRegression(C=10 ** (-number / 8), solver="newton-cholesky")
        machine.fit(train.rows.astype(np.float64), train.labels)
        accuracies[number] = machine.score(validation.rows, validation.labels)
    number = round(8 * np.log10(found.strength))
    assert found.strength == pytest.approx(10 ** (number / 8))
    assert found.accuracy == pytest.approx(max(accuracies.values()), abs=0.005)
    assert found.accuracy > accuracies[-48] + 0.005, "the strength does not matter"


def test_validation_images_are_learned_from_in_the_end(monkeypatch):
    fits = []
    regression = linear_probe.Regression

    def counted(mesh, rows, labels, classes, prior):
        fits.append(len(rows))
        return regression(mesh, rows, labels, classes, prior)

    monkeypatch.setattr(linear_probe, "Regression", counted)
    run(drawn(3, 50), drawn(1, 100), drawn(2, 40))
    assert fits == [100, 140]
    fits.clear()
    run(drawn(3, 50), drawn(1, 100))
    assert fits == [90, 100]


@pytest.mark.parametrize("devices", (1, 8))
def test_figures_are_shares_of_the_test_images(devices):
    train, test = drawn(1, 200, noise=0.3), drawn(2, 100, noise=0.3)
    prepared = Further({"train": Given(train)}, ())
    result = Evaluator("data", train="train").run(Encoded({}, devices=devices), None, Given(test), SkipLog(), prepared)
    machine = sklearn.linear_model.LogisticRegression(C=1 / result.further["regularizer"], max_iter=1000)
    machine.fit(train.rows.astype(np.float64), train.labels)
    assert result.metrics["lp_acc1"] == pytest.approx(machine.score(test.rows, test.labels), abs=0.011)
    assert result.metrics["lp_acc1"] > 0.9 and result.metrics["lp_acc5"] == 1
    assert result.summary == f"linear probe accuracy {result.metrics['lp_acc1']:.1%} (5 classes)"


def test_fewer_images_give_a_curve():
    result = run(drawn(3, 200), drawn(1, 300), drawn(2, 100), shots=(1, 16), fractions=(0.5,), seeds=2)
    few, more = result.metrics["lp_acc1_1shot"], result.metrics["lp_acc1_16shot"]
    assert few < more <= 1 and result.metrics["lp_acc1_50%"] > few
    assert {name: len(values) for name, values in result.further["fewer_images"].items()} == {
        "1shot": 2,
        "16shot": 2,
        "50%": 2,
    }
    assert few == pytest.approx(np.mean(result.further["fewer_images"]["1shot"]))


def test_shots_are_of_each_class_and_those_of_fewer_are_among_those_of_more():
    labels = np.array([0] * 10 + [1] * 3 + [4] * 20)
    few, more = shots_of(labels, 2, 0), shots_of(labels, 5, 0)
    assert np.bincount(labels[few]).tolist() == [2, 2, 0, 0, 2]
    assert np.bincount(labels[more]).tolist() == [5, 3, 0, 0, 5]
    assert set(few) < set(more)
    assert set(shots_of(labels, 2, 1)) != set(few)
    assert set(share_of(100, 0.01, 0)) < set(share_of(100, 0.1, 0)) and len(share_of(100, 0.1, 0)) == 10
    assert len(share_of(3, 0.01, 0)) == 1


def test_classes_without_a_name_are_counted_from_all_labels():
    test, train = drawn(3, 50), drawn(1, 100)
    assert run(test, train).summary.endswith("(5 classes)")
    assert run(test, train, names=tuple("abcdefg")).summary.endswith("(7 classes)")
    far = [Features(part.rows, part.labels * 500_000_000) for part in (test, train)]
    assert run(*far).metrics == run(test, train).metrics


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"shots": (0,)}, r"shots=\(0,\) must be at least 1 each"),
        ({"fractions": (1.0,)}, r"fractions=\(1.0,\) must lie between 0 and 1"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
    ],
)
def test_wrong_keys_are_one_line(keys, said):
    with pytest.raises(UserError, match=said):
        Evaluator("data", train="train", **keys)


def test_what_cannot_be_learned_is_one_line():
    one = Features(np.ones((10, 8), np.float32), np.zeros(10, int))
    with pytest.raises(UserError, match="train: all images have the same label; a classifier needs two classes"):
        run(drawn(3, 50), one)
    with pytest.raises(UserError, match=r"train: no image has a class label"):
        unlabeled = Given(drawn(1, 3))
        unlabeled.embedded = embedded_set(np.eye(3))
        prepared = Further({"train": unlabeled}, ())
        Evaluator("data", train="t").run(Encoded({}), None, Given(drawn(1, 9)), SkipLog(), prepared)
    broken = Features(np.full((10, 8), np.nan, np.float32), np.arange(10))
    with pytest.raises(UserError, match="train: the model's features have numbers that are not finite"):
        run(drawn(3, 50), broken)


def test_sources_with_other_classes_are_refused_before_any_training():
    with pytest.raises(UserError, match="train: nowhere.tar does not exist"):
        Evaluator("data", train="nowhere.tar").prepare(NoRecords("cat"), "")
    with pytest.raises(UserError, match=r"train: its 80 classes \(.*\) are not the 1 of data \(cat, \.\.\.\)"):
        Evaluator("data", train="shapes").prepare(NoRecords("cat"), "")
    prepared = Evaluator("shapes:seen", train="shapes", validation="shapes:seen").prepare(NoRecords(), "")
    assert len(prepared.class_names) == 80 and set(prepared.sources) == {"train", "validation"}
    lacks = Evaluator("data", train="shapes").lacks
    assert lacks(Record(b"", (), "x"), prepared) == "no class label"
    with pytest.raises(UserError, match="label 80 is outside the 80 classes, in x"):
        lacks(Record(b"", (), "x", label=80), prepared)


def test_two_processes_fit_the_probe_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environments = {"alone": {}} | {str(number): joined | {"JAX_PROCESS_ID": str(number)} for number in range(2)}
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "helpers" / "probe_process.py", tmp_path / f"{name}.npz"],
            env=environment(changes, devices=2),
        )
        for name, changes in environments.items()
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    alone, first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in environments)
    for found in (first, second):
        assert found["strength"] == alone["strength"] and found["accuracy"] == alone["accuracy"]
        np.testing.assert_allclose(found["weights"], alone["weights"], atol=1e-5)
    np.testing.assert_array_equal(first["weights"], second["weights"])
