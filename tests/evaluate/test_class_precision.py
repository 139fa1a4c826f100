"""Precision of retrieval by class compared with results by hand."""

from __future__ import annotations

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set

from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError
from jaxclip.evaluate.class_precision import Evaluator, Queries, precisions


def test_the_share_of_the_most_similar_images_with_the_querys_label():
    # Six images on a half circle, labels 0 0 1 1 0 1 from the first text on.
    angles = np.radians([0, 10, 20, 30, 40, 50])
    images = embedded_set(np.stack([np.cos(angles), np.sin(angles)], 1), labels=[0, 0, 1, 1, 0, 1])
    table = {"first": [1.0, 0.0], "last": [np.cos(angles[-1]), np.sin(angles[-1])]}
    result = Evaluator("data", queries="q.csv").run(
        LookUp(table, images), None, NoRecords(), SkipLog(), Queries(["first", "last"], [0, 1], None)
    )
    # Of the five nearest to "first" three have label 0, of those of "last" three have label 1.
    assert result.metrics == {
        "text_precision@5": pytest.approx(0.6),
        "text_precision@10": None,
        "text_precision@50": None,
    }
    assert result.summary == "text → image Prec@5/10/50 60.0/-/-"


def test_images_ask_by_the_direction_of_their_features_and_do_not_find_themselves():
    rng = np.random.default_rng(0)
    images = embedded_set(100 * rng.standard_normal((60, 8)), labels=list(rng.integers(0, 4, 60)))
    result = Evaluator("data", image_queries="q").run(
        LookUp({}, images), None, NoRecords(), SkipLog(), Queries([], [], NoRecords())
    )
    unit = images.outputs / np.linalg.norm(images.outputs, axis=1, keepdims=True)
    labels = np.array(images.labels)
    for k in (5, 10, 50):
        expected = [
            np.mean(labels[np.argsort(-unit @ row)[1 : k + 1]] == label)
            for row, label in zip(unit, labels, strict=True)
        ]
        assert result.metrics[f"image_precision@{k}"] == pytest.approx(np.mean(expected))


def test_no_k_counts_an_image_that_is_not_to_be_found():
    similarities = np.array([[0.5] * 5, [-np.inf, 0.5, 0.5, 0.5, 0.5]])
    assert precisions(similarities[:1], np.array([1]), np.ones(5, int)) == {5: 1.0, 10: None, 50: None}
    assert precisions(similarities, np.array([1, 1]), np.ones(5, int))[5] is None


def test_a_collapsed_model_gets_the_images_in_their_order():
    assert precisions(np.ones((2, 10)), np.array([0, 1]), np.array([0] * 5 + [1] * 5))[5] == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("", "must have a text and a label"),
        ("text,label\n", "must have a text and a label"),
        ("text,class\nfluid,1\n", "line 2 of"),
        ("text,label\nfluid,1\nedema,two\n", "line 3 of"),
        ("text,label\n,1\n", "line 2 of"),
    ],
)
def test_queries_that_cannot_be_used_are_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "q.csv").write_text(content)
    with pytest.raises(UserError, match=f"^queries: .*{said}"):
        Evaluator("data", queries="q.csv").prepare(NoRecords(), str(tmp_path))


def test_queries_are_read_from_a_table(tmp_path):
    (tmp_path / "q.csv").write_text('text,label\n"fluid, left",1\nedema,0\n')
    found = Evaluator("data", queries="q.csv").prepare(NoRecords(), str(tmp_path))
    assert found == Queries(["fluid, left", "edema"], [1, 0], None)
    with pytest.raises(UserError, match="^image_queries: .*none.tar"):
        Evaluator("data", image_queries="none.tar").prepare(NoRecords(), str(tmp_path))


def test_what_is_asked_for_and_the_labels_must_be_there():
    with pytest.raises(UserError, match="queries is missing"):
        Evaluator("data")
    evaluator = Evaluator("data", queries="q.csv")
    assert evaluator.lacks(Record(b"", (), "x"), Queries([], [], None)) == "no class label"
    with pytest.raises(UserError, match="no image has a class label"):
        unlabeled = LookUp({"a": [1.0, 0.0]}, embedded_set(np.eye(2)))
        evaluator.run(unlabeled, None, NoRecords(), SkipLog(), Queries(["a"], [0], None))
