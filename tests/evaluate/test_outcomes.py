"""What results say of each example: the metrics are the means, and the digest is of the examples alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set

from jaxclip import evaluate
from jaxclip.data.skips import SkipLog
from jaxclip.evaluate import linear_probe, nearest_neighbors, zeroshot_classification, zeroshot_retrieval
from jaxclip.evaluate.evaluation import to_json
from jaxclip.evaluate.on_features import Further
from jaxclip.evaluate.zeroshot_classification import Prompts

CLASSES = ("cat", "dog", "eel", "fox", "gnu", "hen")
LABELS = np.random.default_rng(0).integers(0, 6, 47).tolist()


class Given(NoRecords):
    """A source whose features are known."""

    def __init__(self, embedded):
        super().__init__()
        self.embedded = embedded


class Encoded(LookUp):
    """An encoder of such sources."""

    def source(self, variables, source, skips, ids=None, function="encode_image"):
        return source.embedded


def rows(seed: int, labels: list[int]) -> np.ndarray:
    """Embeddings that tell their class, not always the right one."""
    return np.eye(8)[labels] + 0.5 * np.random.default_rng(seed).standard_normal((len(labels), 8))


def labeled(evaluator: evaluate.Evaluator, prepared: Any, seed: int = 1, labels: list[int] = LABELS) -> evaluate.Result:
    encoder = Encoded(dict(zip(CLASSES, np.eye(8), strict=False)))
    return evaluator.run(encoder, None, Given(embedded_set(rows(seed, labels), labels)), SkipLog(), prepared)


def zeroshot(seed: int = 1, labels: list[int] = LABELS, classes: tuple[str, ...] = CLASSES) -> evaluate.Result:
    return labeled(zeroshot_classification.Evaluator("data"), Prompts(classes, ("{c}",)), seed, labels)


def on_features(module: Any, **keys: Any) -> evaluate.Result:
    train = np.random.default_rng(2).integers(0, 6, 60).tolist()
    prepared = Further({"train": Given(embedded_set(rows(3, train), train))}, CLASSES)
    return labeled(module.Evaluator("data", train="train", **keys), prepared)


def retrieval(seed: int = 1, prefix: str = "", last: str = "z") -> evaluate.Result:
    """Thirty images, every third with two captions."""
    captions = [[f"a{number}", f"b{number}"] if number % 3 == 0 else [f"a{number}"] for number in range(30)]
    captions[-1].append(last)
    texts = [prefix + line for lines in captions for line in lines]
    rng = np.random.default_rng(seed)
    table = dict(zip(texts, rng.standard_normal((len(texts), 4)), strict=True))
    images = embedded_set(rng.standard_normal((30, 4)), captions=captions)
    return zeroshot_retrieval.Evaluator("data", prefix).run(LookUp(table, images), None, NoRecords(), SkipLog(), None)


RECALLS = {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)}


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (zeroshot, {"acc1", "acc5"}),
        (lambda: zeroshot(labels=[label % 4 for label in LABELS], classes=CLASSES[:4]), {"acc1"}),
        (retrieval, RECALLS),
        (lambda: on_features(linear_probe, shots=(1,)), {"lp_acc1", "lp_acc5"}),
        (lambda: on_features(nearest_neighbors, neighbors=(7, 1)), {"knn_acc1", "knn_acc1_7", "knn_acc1_1"}),
    ],
)
def test_a_metric_is_exactly_the_mean_of_its_outcomes(result, names):
    content = json.loads(json.dumps(to_json(result())))
    assert set(content["outcomes"]) == names
    for name, text in content["outcomes"].items():
        assert set(text) <= {"0", "1"}
        assert text.count("1") / len(text) == content["metrics"][name]
    assert any(0 < content["metrics"][name] < 1 for name in names), "the data tell nothing"


def test_outcomes_are_in_the_order_of_the_examples():
    images = embedded_set(np.eye(8)[[0, 1, 2, 3]], labels=[0, 5, None, 3])
    result = zeroshot_classification.Evaluator("data").run(
        LookUp(dict(zip(CLASSES, np.eye(8), strict=False)), images),
        None,
        NoRecords(),
        SkipLog(),
        Prompts(CLASSES, ("{c}",)),
    )
    assert to_json(result)["outcomes"]["acc1"] == "101"


def test_captions_and_images_are_different_examples():
    outcomes = to_json(retrieval())["outcomes"]
    assert {name: len(text) for name, text in outcomes.items()} == {
        name: 41 if name.startswith("image") else 30 for name in RECALLS
    }


def test_the_digest_is_of_the_examples_and_not_of_the_model():
    assert zeroshot(seed=1).outcomes_of == zeroshot(seed=9).outcomes_of
    assert zeroshot().outcomes_of != zeroshot(labels=[*LABELS[:-1], (LABELS[-1] + 1) % 6]).outcomes_of
    assert zeroshot().outcomes_of != zeroshot(labels=LABELS[:-1]).outcomes_of
    assert retrieval(seed=1).outcomes_of == retrieval(seed=9, prefix="a photo of ").outcomes_of
    assert retrieval().outcomes_of != retrieval(last="y").outcomes_of
    digests = {one.outcomes_of for one in (zeroshot(), on_features(linear_probe), on_features(nearest_neighbors))}
    assert len(digests) == 1, "the same images and labels"


def test_the_order_of_the_examples_counts():
    assert evaluate.examples_digest(["a", "b"]) != evaluate.examples_digest(["b", "a"])


def test_a_result_without_outcomes_has_no_such_keys():
    assert not {"outcomes", "outcomes_of"} & set(to_json(evaluate.Result({"a": 1.0}, "a")))
