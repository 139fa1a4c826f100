"""Figures of classification compared with scikit-learn's and with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from jaxclip.evaluate.classification_metrics import (
    average_precision,
    calibration_error,
    classified,
    eleven_point_precision,
    roc_auc,
    worst_confusions,
)


def random_scores(seed: int, images: int = 300, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    relevant = rng.random(images) < 0.3
    scores = rng.standard_normal(images) + relevant
    return relevant, scores.round(1) if ties else scores


@pytest.mark.parametrize("seed", range(3))
def test_eleven_points_are_vocs(seed):
    """VOC's own evaluation goes down the images by their score, and takes the best precision from each recall on."""
    relevant, scores = random_scores(seed)
    hits = relevant[np.argsort(-scores)]
    precision, recall = np.cumsum(hits) / np.arange(1, len(hits) + 1), np.cumsum(hits) / hits.sum()
    # In whole tenths of the images, a comparison of fractions depends on how they are rounded.
    expected = np.mean([precision[10 * np.cumsum(hits) >= tenths * hits.sum()].max() for tenths in range(11)])
    assert recall[-1] == 1
    assert eleven_point_precision(relevant, scores) == pytest.approx(expected, abs=1e-12)


def test_eleven_points_do_not_depend_on_the_order_of_images_with_one_score():
    relevant, scores = random_scores(0, ties=True)
    order = np.random.default_rng(1).permutation(len(scores))
    assert eleven_point_precision(relevant[order], scores[order]) == eleven_point_precision(relevant, scores)


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_under_the_curve_is_the_chance_of_the_right_order(ties):
    relevant, scores = random_scores(3, ties=ties)
    ahead = np.sign(scores[relevant][:, None] - scores[~relevant])
    assert roc_auc(relevant, scores) == pytest.approx((ahead + 1).mean() / 2, abs=1e-12)


def test_the_calibration_error_is_the_distance_of_accuracy_and_confidence_by_bin():
    rng = np.random.default_rng(4)
    confidence = rng.random(500)
    right = rng.random(500) < confidence**2
    expected = 0.0
    for low in np.arange(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(right, confidence) == pytest.approx(expected, abs=1e-12)
    assert calibration_error(np.array([True, True]), np.array([1.0, 1.0])) == 0
    assert calibration_error(np.array([False]), np.array([1.0])) == 1
    assert calibration_error(np.array([False]), np.array([0.0])) == 0


@pytest.mark.parametrize("images", (1, 300, 4097))
def test_accuracies_are_those_of_scikit_learn(images):
    rng = np.random.default_rng(images)
    features, classes = rng.standard_normal((images, 8)), rng.standard_normal((12, 8))
    labels = rng.integers(0, 12, images)
    logits = 3.0 * features @ classes.T
    found = classified(features, classes, labels, scale=3.0)
    for k in (1, 5):
        expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=np.arange(12))
        assert np.mean(found.ranks < k) == pytest.approx(expected, abs=1e-12)
    assert sklearn.metrics.accuracy_score(labels, found.predicted) == np.mean(found.ranks == 0)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.confidence, probabilities.max(axis=1), rtol=1e-12)


def test_of_equal_classes_the_first_is_ahead():
    found = classified(np.ones((2, 3)), np.ones((4, 3)), np.array([0, 3]))
    assert found.predicted.tolist() == [0, 0] and found.ranks.tolist() == [0, 3]
    assert found.confidence.tolist() == [0.25, 0.25]


def test_what_is_not_a_number_stands_behind_all_others():
    classes = np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, 1.0]])
    found = classified(np.array([[0.1, 0.2], [np.nan, 1.0]]), classes, np.array([1, 2]))
    assert found.predicted.tolist() == [2, 0] and found.ranks.tolist() == [2, 2]
    assert np.isfinite(found.confidence).all()
    broken = classified(np.full((3, 2), np.nan), np.eye(2), np.array([0, 0, 1]))
    assert broken.ranks.tolist() == [1, 1, 1], "an image without any number is no right answer of the first class"
    relevant, scores = np.array([True, False, True]), np.array([0.9, 0.5, np.nan])
    for figure in (average_precision, eleven_point_precision, roc_auc):
        assert figure(relevant, scores) == figure(relevant, np.array([0.9, 0.5, 0.1]))
        assert np.isfinite(figure(relevant, np.full(3, np.nan)))


def test_confusions_are_ordered_by_their_share_of_a_class():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    predicted = np.array([0, 1, 1, 2, 1, 0, 2, 0, 2])
    confidence = np.array([0.9, 0.4, 0.8, 0.7, 0.9, 0.6, 0.9, 0.5, 0.9])
    first, second, third, fourth = worst_confusions(labels, predicted, confidence, 10)
    assert (first.label, first.predicted, first.images, first.share) == (0, 1, [2, 1], 0.5)
    assert (second.label, second.predicted, second.images, second.share) == (1, 0, [5], 0.5)
    assert (third.label, third.predicted, third.share) == (2, 0, 1 / 3)
    assert (fourth.label, fourth.predicted, fourth.share) == (0, 2, 0.25)
    assert worst_confusions(labels, predicted, confidence, 1) == [first]
    assert worst_confusions(labels, labels, confidence, 10) == []
