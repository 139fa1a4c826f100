"""Zero-shot accuracy and retrieval follow from ranks, and ranks are those of a plain stable sort."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.encoder import EmbeddedSet, Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.ranking import ranks, recalls
from jaxclip.evaluate.retrieval import retrieve
from jaxclip.evaluate.zero_shot import class_embeddings, classify


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return sharding.create(MeshConfig(), jax.devices()[:devices])


def sorted_ranks(queries, keys, query_groups, key_groups):
    """Sorts all keys of every query, and counts the wrong ones before the first right one."""
    found = []
    for query, group in zip(queries, query_groups, strict=True):
        order = np.argsort(-(keys @ query), kind="stable")
        right = key_groups[order] == group
        found.append(np.count_nonzero(~right[: np.argmax(right)]))
    return np.array(found)


# (queries, keys, groups, chunk, devices).
SHAPES = [
    (1, 1, 1, 4096, 1),
    (1, 1, 1, 4096, 8),
    (7, 13, 13, 4, 1),
    (7, 13, 13, 4, 8),
    (30, 17, 5, 8, 1),
    (30, 17, 5, 8, 8),
    (16, 16, 16, 16, 8),
    (5, 40, 3, 7, 1),
    (50, 41, 20, 1, 8),
    (33, 100, 30, 4096, 8),
]


@pytest.mark.parametrize(("queries", "keys", "groups", "chunk", "devices"), SHAPES)
def test_ranks_are_those_of_a_stable_sort(queries, keys, groups, chunk, devices):
    """Small whole numbers: similarities are exact, and many are equal."""
    rng = np.random.default_rng(queries * keys)
    key_groups = rng.permutation(np.concatenate([np.arange(groups), rng.integers(0, groups, keys - groups)]))
    query_groups = rng.choice(key_groups, queries)
    query, key = (rng.integers(-2, 3, (count, 3)).astype(np.float32) for count in (queries, keys))
    found = ranks(mesh_of(devices), query, key, query_groups, key_groups, chunk)
    np.testing.assert_array_equal(found, sorted_ranks(query, key, query_groups, key_groups))


@pytest.mark.parametrize("devices", (1, 8))
def test_ranks_of_real_embeddings_do_not_depend_on_blocks_or_devices(devices):
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 60, 16)).astype(np.float32)
    groups = np.arange(60)
    expected = sorted_ranks(query.astype(np.float64), key.astype(np.float64), groups, groups)
    for chunk in (4096, 9):
        np.testing.assert_array_equal(ranks(mesh_of(devices), query, key, groups, groups, chunk), expected)


def test_the_best_of_several_right_answers_counts_and_the_others_do_not_stand_in_the_way():
    query = np.array([[1.0]], np.float32)
    key = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]], np.float32)
    rank = lambda *groups: int(ranks(mesh_of(1), query, key, np.array([1]), np.array(groups))[0])  # noqa: E731
    assert rank(1, 1, 1, 0, 0) == 0
    assert rank(0, 1, 1, 0, 1) == 1
    assert rank(0, 0, 0, 0, 1) == 4


@pytest.mark.parametrize("devices", (1, 8))
@pytest.mark.parametrize("chunk", (4096, 16))
def test_a_collapsed_model_gets_what_chance_gives(devices, chunk):
    """Equal similarities stand in the order of the keys: one query in a hundred has its own first."""
    same = np.full((100, 8), 0.3, np.float32)
    numbers = np.random.default_rng(1).permutation(100)
    found = ranks(mesh_of(devices), same, same, numbers, np.arange(100), chunk)
    np.testing.assert_array_equal(found, numbers)
    assert recalls(found) == {1: 0.01, 5: 0.05, 10: 0.1}


def test_what_is_not_a_number_stands_behind_everything():
    rng = np.random.default_rng(2)
    query, key = rng.standard_normal((2, 10, 4)).astype(np.float32)
    numbers = np.arange(10)
    broken = np.full_like(key, np.nan)
    np.testing.assert_array_equal(ranks(mesh_of(1), query, broken, numbers, numbers), np.full(10, 9))
    np.testing.assert_array_equal(ranks(mesh_of(1), broken, key, numbers, numbers), np.full(10, 9))
    one_broken = np.where(numbers[:, None] == 3, np.nan, key)
    found = ranks(mesh_of(1), query, one_broken.astype(np.float32), numbers, numbers)
    assert found[3] == 9
    others = [number for number in numbers if number != 3]
    kept = sorted_ranks(query[others], key[others], numbers[others], numbers[others])
    np.testing.assert_array_equal(found[others], kept)


def test_recalls_are_shares_of_the_queries():
    assert recalls(np.array([0, 0, 3, 7, 50])) == {1: 0.4, 5: 0.6, 10: 0.8}
    assert recalls(np.array([0, 1, 2, 3]), (2,)) == {2: 0.5}


class LookUp(Encoder):
    """An encoder whose text tower is a table; it never sees a picture."""

    def __init__(self, table: dict[str, Any], devices: int = 1):
        self.mesh = mesh_of(devices)
        self.table = table

    def texts(self, params, texts):
        return np.array([self.table[text] for text in texts], np.float32)


def embedded_set(images, labels=None, captions=None) -> EmbeddedSet:
    images = np.array(images, np.float32)
    return EmbeddedSet(images, labels or [None] * len(images), captions or [[] for _ in images])


class TestRetrieval:
    @pytest.mark.parametrize("devices", (1, 8))
    def test_with_several_captions_per_picture(self, devices):
        """By hand: three pictures on three axes, and five captions between them.

        Captions to pictures: a0, a1 and c0 find theirs first, b0 second, b1 third.
        Pictures to captions: a and c find one of theirs first. Behind b's own best, b0, stand none but a1.
        """
        table = {
            "a0": [1.0, 0.1, 0.0],
            "a1": [0.9, 0.7, 0.0],
            "b0": [0.6, 0.5, 0.0],
            "b1": [0.5, 0.1, 0.2],
            "c0": [0.0, 0.2, 0.9],
        }
        pictures = embedded_set(np.eye(3), captions=[["a0", "a1"], ["b0", "b1"], ["c0"]])
        metrics = retrieve(LookUp(table, devices), None, pictures, "by_hand")
        assert metrics == pytest.approx(
            {
                "image_retrieval_recall@1": 3 / 5,
                "image_retrieval_recall@5": 1.0,
                "image_retrieval_recall@10": 1.0,
                "text_retrieval_recall@1": 2 / 3,
                "text_retrieval_recall@5": 1.0,
                "text_retrieval_recall@10": 1.0,
            }
        )

    def test_recalls_at_five_and_ten(self):
        """Of twelve pictures on a line, each caption points at the far end: the last pictures come first."""
        table = {str(number): [1.0] for number in range(12)}
        pictures = embedded_set([[number] for number in range(12)], captions=[[str(number)] for number in range(12)])
        metrics = retrieve(LookUp(table), None, pictures, "line")
        by_text = [metrics[f"image_retrieval_recall@{k}"] for k in (1, 5, 10)]
        assert by_text == pytest.approx([1 / 12, 5 / 12, 10 / 12])

    def test_pictures_without_a_caption_are_left_out(self):
        table = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
        # The picture in the middle is nearest to both captions.
        pictures = embedded_set([[1, 0], [9, 9], [0, 1]], captions=[["a"], [], ["b"]])
        metrics = retrieve(LookUp(table), None, pictures, "gap")
        assert set(metrics.values()) == {1.0}

    def test_no_captions_at_all_is_one_line(self):
        with pytest.raises(UserError, match=r"^evals\.flickr: no picture has a caption to retrieve$"):
            retrieve(LookUp({}), None, embedded_set(np.eye(2)), "flickr")


class TestClassification:
    classes = ("cat", "dog", "eel", "fox", "gnu")

    def encoder(self, devices: int = 1) -> LookUp:
        return LookUp({f"a {name}": row for name, row in zip(self.classes, np.eye(5), strict=True)}, devices)

    @pytest.mark.parametrize("devices", (1, 8))
    def test_accuracy_and_recall_of_each_class_that_occurs(self, devices):
        """Three cats of which two are found, one dog that is taken for a fox, two eels found."""
        images = np.eye(5)[[0, 0, 1, 3, 2, 2]]
        pictures = embedded_set(images, labels=[0, 0, 0, 1, 2, 2])
        metrics, per_class = classify(self.encoder(devices), None, pictures, self.classes, ("a {c}",), "zoo")
        assert metrics == pytest.approx({"acc1": 4 / 6, "acc5": 1.0, "mean_per_class_recall": (2 / 3 + 0 + 1) / 3})
        assert per_class == pytest.approx({"cat": 2 / 3, "dog": 0.0, "eel": 1.0})

    def test_top_five_of_six(self):
        names = (*self.classes, "hen")
        angles = np.radians(10 * np.arange(6))
        encoder = LookUp(dict(zip(names, np.stack([np.cos(angles), np.sin(angles)], axis=1), strict=True)))
        # Nearest to the first class and farthest from the last.
        pictures = embedded_set([[1, 0]] * 6, labels=list(range(6)))
        metrics, _ = classify(encoder, None, pictures, names, ("{c}",), "zoo")
        assert (metrics["acc1"], metrics["acc5"]) == pytest.approx((1 / 6, 5 / 6))

    def test_there_is_no_top_five_below_five_classes(self):
        pictures = embedded_set(np.eye(5)[:2], labels=[0, 1])
        metrics, _ = classify(self.encoder(), None, pictures, self.classes[:4], ("a {c}",), "zoo")
        assert metrics == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0}

    def test_pictures_without_a_label_are_left_out(self):
        pictures = embedded_set(np.eye(5)[:3], labels=[0, None, 1])
        metrics, per_class = classify(self.encoder(), None, pictures, self.classes, ("a {c}",), "zoo")
        assert metrics["acc1"] == 0.5 and per_class == {"cat": 1.0, "dog": 0.0}

    def test_two_classes_of_one_name_are_two_classes(self):
        """As the crane that flies and the crane that lifts: the mean is over classes, the listing by name."""
        pictures = embedded_set(np.eye(2)[[0, 0, 0, 1]], labels=[0, 0, 0, 1])
        encoder = LookUp({"crane": [1.0, 0.0]})
        metrics, per_class = classify(encoder, None, pictures, ("crane", "crane"), ("{c}",), "zoo")
        # Their texts are the same, so the first is what every picture is taken for.
        assert metrics["mean_per_class_recall"] == pytest.approx((1.0 + 0.0) / 2)
        assert per_class == {"crane": 0.75}

    def test_a_collapsed_model_always_says_the_first_class(self):
        pictures = embedded_set(np.ones((10, 3)), labels=[0, 1, 2, 3, 4] * 2)
        encoder = LookUp({name: [1.0, 1.0, 1.0] for name in self.classes})
        metrics, per_class = classify(encoder, None, pictures, self.classes, ("{c}",), "zoo")
        assert metrics["acc1"] == 0.2
        assert per_class == {"cat": 1.0, "dog": 0.0, "eel": 0.0, "fox": 0.0, "gnu": 0.0}

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            ([None, None], "evals.zoo: no picture has a class label (a .cls member or a label column)"),
            ([0, 5], "evals.zoo: label 5 is outside the 5 classes given"),
            ([0, -1], "evals.zoo: label -1 is outside the 5 classes given"),
        ],
    )
    def test_labels_that_cannot_be_used_are_one_line(self, labels, said):
        with pytest.raises(UserError) as caught:
            classify(self.encoder(), None, embedded_set(np.eye(5)[:2], labels), self.classes, ("a {c}",), "zoo")
        assert str(caught.value) == said

    def test_templates_are_averaged_in_embedding_space(self):
        table = {"a cat": [1.0, 0.0], "one cat": [0.0, 1.0], "a dog": [-1.0, 0.0], "one dog": [0.6, 0.8]}
        found = class_embeddings(LookUp(table), None, ("cat", "dog"), ("a {c}", "one {c}"))
        expected = np.array([[1.0, 1.0], [-0.4, 0.8]])
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)

    def test_templates_that_cancel_out_do_not_divide_by_zero(self):
        table = {"a cat": [1.0, 0.0], "no cat": [-1.0, 0.0]}
        np.testing.assert_array_equal(class_embeddings(LookUp(table), None, ("cat",), ("a {c}", "no {c}")), [[0, 0]])
