"""Nearest neighbors compared with scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set
from sklearn.neighbors import KNeighborsClassifier

from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError
from jaxclip.evaluate.labels import unit_rows
from jaxclip.evaluate.nearest_neighbors import Evaluator, predictions
from jaxclip.evaluate.on_features import Further


def drawn(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, rows)
    centers = np.random.default_rng(9).standard_normal((6, 10))
    return (centers[labels] + 1.5 * rng.standard_normal((rows, 10))).astype(np.float32), labels


class Given(NoRecords):
    """A source whose features are known."""

    def __init__(self, rows, labels):
        super().__init__()
        self.embedded = embedded_set(rows, labels=labels.tolist())


class Encoded(LookUp):
    """An encoder of such sources."""

    def source(self, variables, source, skips, ids=None, function="encode_image"):
        assert function == "features"
        return source.embedded


@pytest.mark.parametrize("images", (3, 700))
def test_classes_are_those_of_scikit_learn(images):
    train, labels = drawn(0, 200)
    test, _ = drawn(1, images)
    train, test = unit_rows(train), unit_rows(test)
    found = predictions(test, train, labels, (1, 5, 20), 0.07)
    for k, classes in found.items():
        # For unit vectors, the cosine is 1 - distance**2 / 2.
        machine = KNeighborsClassifier(k, weights=lambda away: np.exp((1 - away**2 / 2) / 0.07), algorithm="brute")
        np.testing.assert_array_equal(classes, machine.fit(train, labels).predict(test))


def test_there_are_no_more_neighbors_than_training_images():
    train, labels = drawn(0, 3)
    found = predictions(unit_rows(train), unit_rows(train), labels, (1, 50), 0.01)
    np.testing.assert_array_equal(found[1], labels)
    np.testing.assert_array_equal(found[50], labels)


def test_the_first_number_is_the_figure_that_people_quote():
    train, test = drawn(0, 300), drawn(1, 100)
    prepared = Further({"train": Given(*train)}, ())
    evaluator = Evaluator("data", train="train", neighbors=(20, 1))
    result = evaluator.run(Encoded({}), None, Given(*test), SkipLog(), prepared)
    assert list(result.metrics) == ["knn_acc1", "knn_acc1_20", "knn_acc1_1"]
    assert result.metrics["knn_acc1"] == result.metrics["knn_acc1_20"] > result.metrics["knn_acc1_1"] > 1 / 6
    assert result.summary == f"20 nearest neighbors' accuracy {result.metrics['knn_acc1']:.1%}"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"neighbors": ()}, r"neighbors=\(\) must be numbers of at least 1"),
        ({"neighbors": (5, 0)}, r"neighbors=\(5, 0\) must be numbers of at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_wrong_keys_are_one_line(keys, said):
    with pytest.raises(UserError, match=said):
        Evaluator("data", train="train", **keys)
