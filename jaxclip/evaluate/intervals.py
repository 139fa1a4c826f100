"""Confidence intervals of shares of examples, and of the difference between two models over the same examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

CONFIDENCE = 0.95
# The standard error of a bound is then a seventieth of half of the interval.
_RESAMPLES = 10_000


class Interval(NamedTuple):
    """The bounds of a confidence interval."""

    low: float
    high: float


class Outcomes(NamedTuple):
    """What a share is the mean of.

    Attributes:
      right: whether each example was right; at least one.
      examples: the digest of the examples; see `jaxclip.evaluate.examples_digest`. Empty if it is not known.
    """

    right: Bool[np.ndarray, "examples"]
    examples: str


class Spread(NamedTuple):
    """The interval of a share, and its difference to that of a baseline with its interval; None if they are not paired.

    Attributes:
      low, high: the bounds of the share.
      difference: how much larger the share is than the baseline's.
      difference_low, difference_high: the bounds of the difference.
    """

    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def spread(own: Outcomes, baseline: Outcomes | None) -> Spread:
    """The intervals of a share, paired with a baseline if both are known to be over the same examples."""
    if baseline is None or not own.examples or own.examples != baseline.examples:
        return Spread(*of_mean(own.right))
    difference = float(np.sum(own.right) - np.sum(baseline.right)) / len(own.right)
    return Spread(*of_mean(own.right), difference, *of_difference(own.right, baseline.right))


def of_mean(right: Bool[np.ndarray, "examples"]) -> Interval:
    """The 95 % interval of a share by the bootstrap over examples, between percentiles (Efron 1979).

    A resample draws as many examples as there are, with replacement, each of which is right with the probability of
    the share: the number of right ones is binomial. Drawing this number is drawing the resample, without the memory
    and time that the examples take.

    The examples are taken to be independent. If all are right, or none, the interval has no width.

    Args:
      right: whether each example was right; at least one.
    """
    draws = np.random.default_rng(0).binomial(len(right), right.mean(), _RESAMPLES)
    return _percentiles(draws / len(right))


def of_difference(right: Bool[np.ndarray, "examples"], baseline: Bool[np.ndarray, "examples"]) -> Interval:
    """The 95 % interval of how much larger a share is than that of a baseline, by the paired bootstrap over examples.

    Both models keep their outcomes of an example that is drawn. The difference depends on how often a resample has
    the examples that only one of the two has right, and these numbers and that of the others are multinomial.

    Where few examples differ, it is too narrow: four that only one model has right, and none that only the other has,
    exclude 0, where the exact test of McNemar (1947) takes six.

    Args:
      right, baseline: whether each example was right, in the same order; at least one.
    """
    shares = [np.mean(right & ~baseline), np.mean(baseline & ~right), np.mean(right == baseline)]
    draws = np.random.default_rng(0).multinomial(len(right), shares, _RESAMPLES)
    return _percentiles((draws[:, 0] - draws[:, 1]) / len(right))


def _percentiles(values: Float[np.ndarray, "resamples"]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    return Interval(*np.quantile(values, [tail, 1 - tail]).tolist())
