"""Linear probe: logistic regression on frozen features (Radford et al. 2021, section 3.2 and appendix A.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxclip import evaluate
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder, gather
from jaxclip.errors import UserError
from jaxclip.evaluate.classification_metrics import Answers, classified
from jaxclip.evaluate.labels import Labeled
from jaxclip.evaluate.logistic_regression import Classifiers, Regression
from jaxclip.evaluate.on_features import FeatureEvaluator, Further
from jaxclip.evaluate.ranking import recalls

# Strengths of an eighth of a decade's distance, 48 on either side of 1; every sixteenth is tried first.
_STEPS, _COARSE = 48, 16
_HELD_OUT = 0.1


class Features(NamedTuple):
    """Features of labeled images."""

    rows: Float[np.ndarray, "images width"]
    labels: Int[np.ndarray, "images"]

    def at(self, rows: np.ndarray) -> Features:
        """Those of some images."""
        return Features(self.rows[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Evaluator(FeatureEvaluator):
    """How well a linear classifier of frozen features classifies the images of `data`.

    As in the paper, features are those before the projection, without augmentation, and the classifier is a logistic
    regression by L-BFGS of at most 1,000 iterations. The strength of its regularizer is searched among 97 from 1e-6 to
    1e6: 1e-6, 1e-4, ..., 1e6, and then by halving the steps around the best, down to an eighth of a decade. The best is
    the one with the highest accuracy on the validation images, the strongest of equally good ones; the classifier is
    then fitted to training and validation images together.

    Attributes:
      train: the source of the images that are learned from.
      validation: the source of those that the regularizer is chosen by; if empty, a tenth of `train`, drawn at random.
      shots: numbers of images of each class to learn from besides, such as (1, 2, 4, 8, 16); of a class that has fewer,
        all.
      fractions: shares of the training images to learn from besides, such as (0.01, 0.1).
      seeds: how many times the images of `shots` and `fractions` are drawn; the accuracy is the mean.
    """

    validation: str = ""
    shots: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    seeds: int = 3

    def __post_init__(self):
        if min(self.shots, default=1) < 1:
            raise UserError(f"shots={self.shots} must be at least 1 each")
        if not all(0 < share < 1 for share in self.fractions):
            raise UserError(f"fractions={self.fractions} must lie between 0 and 1")
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds} must be at least 1")

    def further(self) -> dict[str, str]:
        """The sources beside `data` by their keys."""
        return super().further() | ({"validation": self.validation} if self.validation else {})

    def prior(self, encoder: Encoder, variables: Any, prepared: Further) -> Float[np.ndarray, "width classes"] | None:
        """The weights that the regularizer pulls to; None for 0."""
        return None

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Further
    ) -> evaluate.Result:
        """CLIP_benchmark's metrics: `lp_acc1`, `lp_acc5`, `lp_mean_per_class_recall`; acc5 is None below five classes.

        With `shots` and `fractions` also `lp_acc1_16shot` and `lp_acc1_1%`, means over the seeds.

        Raises:
          UserError: no image has a label, or all images that are learned from have the same one.
        """

        def features(images: Source, where: str) -> tuple[Features, Labeled]:
            rows, known = self.features(encoder, variables, images, prepared, skips, where)
            return Features(rows, np.array([label for (label,) in known.classes])), known

        train, _ = features(prepared.sources["train"], "train")
        test, tested = features(source, "data")
        if "validation" in prepared.sources:
            validation, _ = features(prepared.sources["validation"], "validation")
        else:
            order = np.random.default_rng(0).permutation(len(train.rows))
            count = max(1, round(_HELD_OUT * len(order)))
            validation, train = train.at(np.sort(order[:count])), train.at(np.sort(order[count:]))
        if len(np.unique(train.labels)) < 2:
            raise UserError("train: all images have the same label; a classifier needs two classes")
        classes = len(prepared.class_names)
        if not classes:
            # Labels without names may be any numbers: those that occur are the classes.
            occurring = np.unique(np.concatenate([part.labels for part in (train, validation, test)]))
            train, validation, test = (
                Features(part.rows, np.searchsorted(occurring, part.labels)) for part in (train, validation, test)
            )
            classes = len(occurring)
        mesh, prior = encoder.mesh, self.prior(encoder, variables, prepared)
        whole = fitted(mesh, train, validation, classes, prior, refit=True)

        def few(parts: Iterable[np.ndarray]) -> list[float]:
            found = (fitted(mesh, train.at(rows), validation, classes, prior) for rows in parts)
            return [accuracy_of(probe.classifier, test) for probe in found]

        curves: dict[str, list[float]] = {}
        for shots in self.shots:
            curves[f"{shots}shot"] = few(shots_of(train.labels, shots, seed) for seed in range(self.seeds))
        for share in self.fractions:
            curves[f"{100 * share:g}%"] = few(share_of(len(train.labels), share, seed) for seed in range(self.seeds))
        answers = _answers(whole.classifier, test)
        return _result(whole, answers, curves, test.labels, classes, tested.examples)


class Probe(NamedTuple):
    """A classifier with the best strength of its regularizer.

    Attributes:
      strength: the objective is the sum of the cross-entropies + strength / 2 * |weights - prior|^2.
      accuracy: on the validation images, before these were learned from.
      classifier: one.
    """

    strength: float
    accuracy: float
    classifier: Classifiers


def fitted(
    mesh: Mesh,
    train: Features,
    validation: Features,
    classes: int,
    prior: Float[np.ndarray, "width classes"] | None = None,
    refit: bool = False,
) -> Probe:
    """Searches the strength of the regularizer, and fits a classifier with the best one.

    Args:
      mesh: the devices.
      train: what is learned from.
      validation: what the strength is chosen by.
      classes: how many there are.
      prior: the weights that the regularizer pulls to; 0 by default.
      refit: whether the validation images are learned from, too, once they have been chosen by.
    """
    regression = Regression(mesh, *train, classes, prior)
    # By the number of the strength; of equally good ones, the strongest is the best.
    tried: dict[int, tuple[float, Classifiers]] = {}

    def attempt(numbers: list[int], start: Classifiers | None) -> int:
        numbers = [number for number in numbers if -_STEPS <= number <= _STEPS and number not in tried]
        if numbers:
            # Where each begins: at the best so far.
            start = None if start is None else Classifiers(*(np.repeat(part, len(numbers), axis=0) for part in start))
            found = regression.fit(np.array([_strength(number) for number in numbers]), start)
            for place, number in enumerate(numbers):
                one = Classifiers(*(part[place : place + 1] for part in found))
                tried[number] = accuracy_of(one, validation), one
        return max(tried, key=lambda number: (tried[number][0], number))

    best = attempt(list(range(-_STEPS, _STEPS + 1, _COARSE)), None)
    step = _COARSE // 2
    while step:
        best = attempt([best - step, best + step], tried[best][1])
        step //= 2
    accuracy, classifier = tried[best]
    if refit:
        del regression  # and with it the features on the devices
        rows, labels = (np.concatenate(parts) for parts in zip(train, validation, strict=True))
        classifier = Regression(mesh, rows, labels, classes, prior).fit(np.array([_strength(best)]), classifier)
    return Probe(_strength(best), accuracy, classifier)


def shots_of(labels: Int[np.ndarray, "images"], shots: int, seed: int) -> Int[np.ndarray, "chosen"]:
    """The rows of some images of each class, drawn at random; those of fewer shots are among those of more."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < shots])


def share_of(count: int, share: float, seed: int) -> Int[np.ndarray, "chosen"]:
    """The rows of a share of the images, at least one, drawn at random; a smaller share is a part of a larger one."""
    return np.sort(np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))])


def accuracy_of(classifier: Classifiers, images: Features) -> float:
    """The share of images whose class a single classifier says."""
    logits = images.rows @ classifier.weights[0] + classifier.intercept[0]
    accuracy = np.mean(logits.argmax(axis=1) == images.labels)
    # Hosts may round differently, and have to search on in the same way.
    return float(gather(float(accuracy))[0])


def _strength(number: int) -> float:
    return 10.0 ** (number / (_COARSE // 2))


def _answers(classifier: Classifiers, images: Features) -> Answers:
    rows = np.concatenate([images.rows, np.ones((len(images.rows), 1), np.float32)], axis=1)
    return classified(rows, np.concatenate([classifier.weights[0], classifier.intercept]).T, images.labels)


def _result(
    probe: Probe,
    answers: Answers,
    curves: dict[str, list[float]],
    labels: Int[np.ndarray, "images"],
    classes: int,
    examples: str,
) -> evaluate.Result:
    accuracy, right = recalls(answers.ranks, (1, 5)), answers.ranks == 0
    metrics: dict[str, float | None] = {
        "lp_acc1": accuracy[1],
        "lp_acc5": accuracy[5] if classes >= 5 else None,
        "lp_mean_per_class_recall": float(np.mean([right[labels == label].mean() for label in np.unique(labels)])),
    }
    tables = [
        evaluate.Table(
            "Linear probe", ("top-1", "top-5", "mean per class"), {"": tuple(metrics.values())}, fractions=True
        )
    ]
    if curves:
        # As text, since the report draws numbers over the steps.
        rows = {
            name: (f"{np.mean(values):.1%}", f"{np.std(values):.1%}", len(values)) for name, values in curves.items()
        }
        tables.append(evaluate.Table("Linear probe of fewer images", ("top-1", "deviation", "drawn"), rows))
        metrics |= {f"lp_acc1_{name}": float(np.mean(values)) for name, values in curves.items()}
    return evaluate.Result(
        metrics=metrics,
        summary=f"linear probe accuracy {accuracy[1]:.1%} ({classes} classes)",
        headline=(f"{accuracy[1]:.1%}", f"linear probe top-1\n{classes} classes"),
        tables=tuple(tables),
        further={"regularizer": probe.strength, "validation_acc1": probe.accuracy, "fewer_images": curves},
        outcomes={f"lp_acc{k}": answers.ranks < k for k in (1, 5) if classes >= k},
        outcomes_of=examples,
    )
