"""Contrastive losses in NumPy and float64: whole matrices, derivatives by hand, independent of jaxclip's code."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reference:
    """A loss and its gradients by both embeddings, the scale and, for the sigmoid loss, the bias."""

    loss: float
    gradients: tuple[np.ndarray, ...]


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def softmax(
    images: np.ndarray,
    texts: np.ndarray,
    scale: float,
    image_weight: float = 0.5,
    ids: np.ndarray | None = None,
) -> Reference:
    """Cross-entropy of rows and of columns against targets, which are matrices here.

    Args:
      images, texts: [batch, width].
      scale: of the cosines.
      image_weight: of the rows.
      ids: [batch]; equal ones are partners.
    """
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    batch = len(images)
    cosines = images @ texts.T
    ids = np.arange(batch) if ids is None else ids
    same = (ids[:, None] == ids[None, :]).astype(np.float64)
    by_row, by_column = same / same.sum(1, keepdims=True), same / same.sum(0, keepdims=True)
    rows, columns = log_softmax(scale * cosines, 1), log_softmax(scale * cosines, 0)
    loss = -(image_weight * (by_row * rows).sum() + (1 - image_weight) * (by_column * columns).sum()) / batch
    by_logits = image_weight * (np.exp(rows) - by_row) + (1 - image_weight) * (np.exp(columns) - by_column)
    return Reference(loss, _chain(by_logits / batch, cosines, images, texts, scale))


def sigmoid(images: np.ndarray, texts: np.ndarray, scale: float, bias: float) -> Reference:
    """A binary cross-entropy for each of all pairs."""
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    batch = len(images)
    cosines = images @ texts.T
    sign = 2 * np.eye(batch) - 1
    logits = sign * (scale * cosines + bias)
    loss = np.logaddexp(0, -logits).sum() / batch
    by_logits = -sign * np.exp(-np.logaddexp(0, logits)) / batch
    return Reference(loss, (*_chain(by_logits, cosines, images, texts, scale), by_logits.sum()))


def _chain(by_logits, cosines, images, texts, scale) -> tuple[np.ndarray, ...]:
    return scale * by_logits @ texts, scale * by_logits.T @ images, (by_logits * cosines).sum()
