"""Figures of classification: average precision, area under the ROC curve, calibration and the worst confusions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_BINS = 15
_CHUNK = 4096


class Answers(NamedTuple):
    """What images were classified as.

    Attributes:
      ranks: how many classes are ahead of an image's own; of equal ones, those that come first.
      predicted: the class that is ahead of all others.
      confidence: its probability.
    """

    ranks: Int[np.ndarray, "images"]
    predicted: Int[np.ndarray, "images"]
    confidence: Float[np.ndarray, "images"]


class Confusion(NamedTuple):
    """Images of one class that were taken for another.

    Attributes:
      label: the class that they have.
      predicted: the class that they were taken for.
      images: their rows, the surest mistake first.
      share: of all images of `label`.
    """

    label: int
    predicted: int
    images: list[int]
    share: float


def classified(
    images: Float[np.ndarray, "images width"],
    classes: Float[np.ndarray, "classes width"],
    labels: Int[np.ndarray, "images"],
    scale: float = 1.0,
) -> Answers:
    """Classifies images by the inner product with each class, 4,096 at a time.

    A product that is not a number stands behind all others.

    Args:
      images, classes: embeddings, or features and the weights of a linear classifier.
      labels: the images' own classes.
      scale: factor of the products in the softmax whose probabilities are the confidence.
    """
    parts = []
    places = np.arange(len(classes))
    for start in range(0, len(images), _CHUNK):
        rows, own = images[start : start + _CHUNK], labels[start : start + _CHUNK, None]
        with np.errstate(invalid="ignore"):
            values = rows @ classes.T
        values = np.where(np.isnan(values), -np.inf, values)
        right = np.take_along_axis(values, own, axis=1)
        ranks = ((values > right) | ((values == right) & (places < own))).sum(axis=1)
        ranks = np.where(np.isneginf(right[:, 0]), len(classes) - 1, ranks)
        best = values.max(axis=1, keepdims=True)
        # A row without any number is as good a guess as any other.
        away = np.where(np.isfinite(best), values - np.where(np.isfinite(best), best, 0), 0)
        confidence = 1 / np.exp(scale * away.astype(np.float64)).sum(axis=1)
        parts.append((ranks, values.argmax(axis=1), confidence))
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def average_precision(relevant: Bool[np.ndarray, "images"], scores: Float[np.ndarray, "images"]) -> float:
    """The mean over relevant images of the precision among those with scores as high, as scikit-learn has it.

    >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.5, 0.1])).__round__(4)
    0.8333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(relevant, _numbers(scores)))


def eleven_point_precision(relevant: Bool[np.ndarray, "images"], scores: Float[np.ndarray, "images"]) -> float:
    """The mean of the highest precisions at recalls of at least 0, 0.1, ..., 1 (Everingham et al. 2010, section 4.2).

    >>> eleven_point_precision(np.array([True, False, True]), np.array([0.9, 0.5, 0.1])).__round__(4)
    0.8485
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(relevant, _numbers(scores))
    # The last point is not an image's, but where the curve is drawn from.
    precision, recall = precision[:-1], recall[:-1]
    # Without rounding, a recall of 3/10 is below a tenth three times.
    return float(np.mean([precision[recall.round(9) >= level].max() for level in np.arange(11) / 10]))


def roc_auc(relevant: Bool[np.ndarray, "images"], scores: Float[np.ndarray, "images"]) -> float:
    """The chance that a relevant image has a higher score than one that is not; half of the ties count.

    >>> roc_auc(np.array([True, False, True]), np.array([0.9, 0.5, 0.1]))
    0.5
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(relevant, _numbers(scores)))


def _numbers(scores: Float[np.ndarray, "images"]) -> Float[np.ndarray, "images"]:
    """The scores, with what is not a number behind all others."""
    broken = np.isnan(scores)
    return np.where(broken, (scores[~broken].min() if not broken.all() else 0.0) - 1, scores)


def calibration_error(right: Bool[np.ndarray, "images"], confidence: Float[np.ndarray, "images"]) -> float:
    """The expected calibration error with 15 bins of equal width (Guo et al. 2017, equation 3).

    It is the mean over images of how far the accuracy of their bin lies from its mean confidence.

    Args:
      right: whether the predicted class is the image's.
      confidence: the probability of the predicted class, from 0 to 1.

    >>> calibration_error(np.array([True, False]), np.array([0.75, 0.75]))
    0.25
    """
    # As in the paper, a bin has its upper bound and not its lower one.
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    away = np.bincount(bins, right.astype(float) - confidence, _BINS)
    return float(np.abs(away).sum() / len(right))


def worst_confusions(
    labels: Int[np.ndarray, "images"],
    predicted: Int[np.ndarray, "images"],
    confidence: Float[np.ndarray, "images"],
    count: int,
) -> list[Confusion]:
    """The pairs of classes with the most mistakes, by the share of the first class's images; each with its images."""
    wrong = np.flatnonzero(labels != predicted)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    cells: dict[tuple[int, int], list[int]] = {}
    for row in wrong:
        cells.setdefault((int(labels[row]), int(predicted[row])), []).append(int(row))
    sizes = np.bincount(labels)
    found = [Confusion(label, other, rows, len(rows) / int(sizes[label])) for (label, other), rows in cells.items()]
    # One image of a class of one is no pattern: of equal shares, the larger number comes first.
    return sorted(found, key=lambda cell: (-cell.share, -len(cell.images), cell.label, cell.predicted))[:count]
