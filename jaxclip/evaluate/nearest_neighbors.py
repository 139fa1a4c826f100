"""Classification by the nearest neighbors of frozen features (Wu et al. 2018, section 3.4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxclip import evaluate
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.labels import unit_rows
from jaxclip.evaluate.on_features import FeatureEvaluator, Further

_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Evaluator(FeatureEvaluator):
    """How often the training images that are most similar to an image have its class; nothing is learned.

    Features have unit length. Each neighbor votes for its class with the weight exp(cosine / temperature).

    Attributes:
      train: the source of the images among which neighbors are looked for.
      neighbors: how many there are; an accuracy for each number. DINO reports 20 (Caron et al. 2021).
      temperature: of the votes.
    """

    neighbors: tuple[int, ...] = (20,)
    temperature: float = 0.07

    def __post_init__(self):
        if not self.neighbors or min(self.neighbors) < 1:
            raise UserError(f"neighbors={self.neighbors} must be numbers of at least 1")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0")

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Further
    ) -> evaluate.Result:
        """`knn_acc1` with the first number of neighbors, and `knn_acc1_5` with five.

        Raises:
          UserError: no image has a label.
        """
        rows, labels = {}, {}
        for where, images in (("train", prepared.sources["train"]), ("data", source)):
            found, known = self.features(encoder, variables, images, prepared, skips, where)
            rows[where], labels[where] = unit_rows(found), np.array([label for (label,) in known.classes])
        predicted = predictions(rows["data"], rows["train"], labels["train"], self.neighbors, self.temperature)
        right = {k: classes == labels["data"] for k, classes in predicted.items()}
        accuracy = {k: float(np.mean(outcomes)) for k, outcomes in right.items()}
        first = self.neighbors[0]
        return evaluate.Result(
            metrics={"knn_acc1": accuracy[first]} | {f"knn_acc1_{k}": value for k, value in accuracy.items()},
            summary=f"{first} nearest neighbors' accuracy {accuracy[first]:.1%}",
            headline=(f"{accuracy[first]:.1%}", f"top-1\n{first} nearest neighbors"),
            tables=(
                evaluate.Table(
                    "Nearest neighbors",
                    tuple(f"top-1 of {k}" for k in accuracy),
                    {"": tuple(accuracy.values())},
                    fractions=True,
                ),
            ),
            outcomes={"knn_acc1": right[first]} | {f"knn_acc1_{k}": outcomes for k, outcomes in right.items()},
            outcomes_of=known.examples,
        )


def predictions(
    images: Float[np.ndarray, "images width"],
    train: Float[np.ndarray, "train width"],
    train_labels: Int[np.ndarray, "train"],
    neighbors: tuple[int, ...],
    temperature: float,
) -> dict[int, Int[np.ndarray, "images"]]:
    """The class with the most votes for each number of neighbors; of equal ones the first.

    Of training images that are as similar, those that come first are nearer. There are no more neighbors than training
    images. Similarities are computed for 512 images at a time.

    >>> train = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 0.9]])
    >>> predictions(np.array([[0.6, 0.8]]), train, np.array([0, 1, 1]), (1, 3), 0.5)
    {1: array([1]), 3: array([1])}
    """
    most = min(max(neighbors), len(train))
    found: dict[int, list[np.ndarray]] = {k: [] for k in neighbors}
    for start in range(0, len(images), _CHUNK):
        cosines = images[start : start + _CHUNK] @ train.T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :most]
        nearest = np.take_along_axis(cosines, order, axis=1)
        # Relative to the nearest one, whose weight would be infinite at a low temperature.
        weights = np.exp((nearest - nearest[:, :1]) / temperature)
        for k in neighbors:
            votes = np.zeros((len(cosines), int(train_labels.max()) + 1))
            np.add.at(votes, (np.arange(len(cosines))[:, None], train_labels[order[:, :k]]), weights[:, :k])
            found[k].append(votes.argmax(axis=1))
    return {k: np.concatenate(parts) for k, parts in found.items()}
