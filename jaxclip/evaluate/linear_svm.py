"""Linear SVMs on features of labeled images (VirTex, Desai and Johnson 2021, section 4.1: PASCAL VOC)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxclip import evaluate
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder, gather
from jaxclip.errors import UserError
from jaxclip.evaluate.classification_metrics import average_precision
from jaxclip.evaluate.labels import unit_rows
from jaxclip.evaluate.on_features import FeatureEvaluator, Further

COSTS = (0.01, 0.1, 1.0, 10.0)
FOLDS = 3
_POSITIVE_WEIGHT = 2
_ITERATIONS = 2000
_THREADS = 8  # at most; each holds a copy of the training features


class Features(NamedTuple):
    """Features of unit length, and which classes each image has.

    Attributes:
      rows: the features.
      classes: the indices of each image's classes.
      single: whether these are labels, of which each image has one.
    """

    rows: Float[np.ndarray, "images width"]
    classes: list[tuple[int, ...]]
    single: bool

    def have(self, index: int) -> Bool[np.ndarray, "images"]:
        """Which images have a class."""
        return np.array([index in classes for classes in self.classes])


class Classifier(NamedTuple):
    """A linear classifier of one class: its decision values are x @ weights + intercept."""

    cost: float
    weights: list[float]
    intercept: float


@dataclasses.dataclass(frozen=True)
class Evaluator(FeatureEvaluator):
    """How well a linear classifier of each class, against all others, ranks the images of `data` by frozen features.

    The classes of an image are its tags, several or none, or else its label. As in VirTex's own code (kdexd/virtex,
    scripts/clf_voc07.py), features have unit length; an SVM has the squared hinge loss and twice the weight for images
    that have the class; its cost is the one of `COSTS` with the highest average precision in 3-fold cross-validation;
    and the average precision is scikit-learn's, the area under the steps, not the mean of VOC's eleven points.

    It differs in two ways: images in which a class is marked as difficult are not told from others, and images are
    prepared as in all evaluations of the model (VirTex resizes to 256 pixels and crops 224).

    Attributes:
      train: the source of the images that the classifiers are trained on.
    """

    tags: ClassVar[bool] = True

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Further
    ) -> evaluate.Result:
        """`mean_average_precision` over the classes that occur in `data`; `acc1`, too, if images have one label each.

        `acc1` is the share of the images of which the classifier of their own class has the highest decision value.
        Images without a class label or tags are left out, and those with a class outside the source's, which are
        counted in `skips`.

        Raises:
          UserError: no image has a label, or a class of `data` has fewer than three images in `train`, or all but two.
        """
        names = prepared.class_names

        def unit_features(images: Source, where: str) -> Features:
            rows, known = self.features(encoder, variables, images, prepared, skips, where)
            return Features(unit_rows(rows.astype(np.float64)), known.classes, known.single)

        train, test = unit_features(prepared.sources["train"], "train"), unit_features(source, "data")
        present = sorted({index for classes in test.classes for index in classes})
        if not present:
            raise UserError("data: no image has a class")
        titles = {index: _title(index, names) for index in present}
        for index in present:
            _check(titles[index], int(train.have(index).sum()), len(train.classes))
        found = _classifiers(train, present)
        scores = np.stack([test.rows @ found[index].weights + found[index].intercept for index in present], axis=1)
        precisions = {index: average_precision(test.have(index), scores[:, n]) for n, index in enumerate(present)}
        metrics = {"mean_average_precision": float(np.mean(list(precisions.values())))}
        if train.single and test.single:
            best = np.array(present)[np.argmax(scores, axis=1)]
            metrics["acc1"] = float(
                np.mean([index in classes for index, classes in zip(best, test.classes, strict=True)])
            )
        return _result(metrics, precisions, found, titles, test)


def fit(rows: Float[np.ndarray, "images width"], relevant: Bool[np.ndarray, "images"]) -> Classifier:
    """The classifier of one class, its cost chosen by cross-validation; the smallest of equally good ones.

    It is solved in the primal, where nothing is random.
    """
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import LinearSVC

    targets = np.where(relevant, 1, -1)
    machines = [
        LinearSVC(C=cost, class_weight={1: _POSITIVE_WEIGHT, -1: 1}, max_iter=_ITERATIONS, dual=False) for cost in COSTS
    ]
    scored = [cross_val_score(one, rows, targets, cv=FOLDS, scoring="average_precision").mean() for one in machines]
    best = machines[int(np.argmax(scored))].fit(rows, targets)
    return Classifier(best.C, best.coef_[0].tolist(), float(best.intercept_[0]))


def _classifiers(train: Features, present: Sequence[int]) -> dict[int, Classifier]:
    """The classifier of each class, each process fitting its share of them."""
    mine = present[jax.process_index() :: jax.process_count()]
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        warnings.filterwarnings("ignore", "Liblinear failed to converge")  # within the iterations of the protocol
        fitted = list(pool.map(lambda index: fit(train.rows, train.have(index)), mine))
    parts = gather([[index, *one] for index, one in zip(mine, fitted, strict=True)])
    return {index: Classifier(*one) for part in parts for index, *one in part}


def _title(index: int, class_names: Sequence[str]) -> str:
    """The name of a class, with its index if others have the same name."""
    name = class_names[index] if class_names else "class"
    return name if list(class_names).count(name) == 1 else f"{name} {index}"


def _check(title: str, positives: int, images: int) -> None:
    """Raises UserError if a class cannot be cross-validated."""
    for count, whose in ((positives, f"of {title}, which data has"), (images - positives, f"that are not of {title}")):
        if count < FOLDS:
            raise UserError(f"train has {count} images {whose}; {FOLDS} are needed for {FOLDS}-fold cross-validation")


def _result(
    metrics: dict[str, float],
    precisions: dict[int, float],
    found: dict[int, Classifier],
    titles: dict[int, str],
    test: Features,
) -> evaluate.Result:
    figure, count = f"{metrics['mean_average_precision']:.1%}", f"{len(precisions)} classes"
    columns = {"mean_average_precision": "mean average precision", "acc1": "top-1"}
    return evaluate.Result(
        metrics=metrics,
        summary=f"linear SVMs' mean average precision {figure} ({count})",
        headline=(f"{figure} mAP", f"linear SVMs\n{count}"),
        tables=(
            evaluate.Table(
                "Linear SVMs", tuple(columns[name] for name in metrics), {"": tuple(metrics.values())}, fractions=True
            ),
            # As text, since numbers would be drawn over the steps, in a chart for each class.
            evaluate.Table(
                "Linear SVMs by class",
                ("average precision", "cost", "images"),
                {
                    titles[index]: (f"{precision:.1%}", f"{found[index].cost:g}", int(test.have(index).sum()))
                    for index, precision in precisions.items()
                },
            ),
        ),
        further={"per_class_average_precision": {titles[index]: value for index, value in precisions.items()}},
    )
