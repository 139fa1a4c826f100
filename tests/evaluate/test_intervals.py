"""Intervals by the bootstrap, compared with all possible resamples and with SciPy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxclip.evaluate import intervals


def outcomes(count: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def of_all_resamples(values: np.ndarray) -> np.ndarray:
    """The bounds between which 95 % of the means of all resamples lie, each of which is as likely as another."""
    rows = np.array(list(itertools.product(range(len(values)), repeat=len(values))))
    return np.quantile(values[rows].mean(axis=1), [0.025, 0.975])


@pytest.mark.parametrize("right", ["10111", "110100", "000001"])
def test_an_interval_is_that_of_all_resamples(right):
    values = np.array([letter == "1" for letter in right])
    assert tuple(intervals.of_mean(values)) == pytest.approx(tuple(of_all_resamples(values)))


@pytest.mark.parametrize(("right", "baseline"), [("11011", "01100"), ("110111", "010010"), ("000001", "000000")])
def test_a_difference_is_that_of_all_paired_resamples(right, baseline):
    first, second = (np.array([letter == "1" for letter in text]) for text in (right, baseline))
    expected = of_all_resamples(first.astype(int) - second)
    assert tuple(intervals.of_difference(first, second)) == pytest.approx(tuple(expected))


def test_intervals_are_those_of_scipy():
    """Both draw: a bound may be the next of the possible means, but two apart in 300."""
    first, second = outcomes(300, 0.7, 0), outcomes(300, 0.6, 1)
    keys = {"n_resamples": 20_000, "method": "percentile", "batch": 1000, "rng": np.random.default_rng(2)}
    theirs = scipy.stats.bootstrap((first,), np.mean, **keys).confidence_interval
    assert intervals.of_mean(first) == pytest.approx(theirs, abs=1.01 / 300)
    paired = scipy.stats.bootstrap(
        (first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, **keys
    ).confidence_interval
    assert intervals.of_difference(first, second) == pytest.approx(paired, abs=1.01 / 300)


def test_the_same_outcomes_have_the_same_interval():
    first, second = outcomes(500, 0.7, 0), outcomes(500, 0.6, 1)
    assert intervals.of_mean(first) == intervals.of_mean(first.copy())
    assert intervals.of_difference(first, second) == intervals.of_difference(first.copy(), second.copy())


def test_a_difference_turns_around_with_the_models():
    first, second = outcomes(2000, 0.7, 0), outcomes(2000, 0.6, 1)
    forward, back = intervals.of_difference(first, second), intervals.of_difference(second, first)
    # Other draws: two apart in 2,000 examples, where the interval is 120 wide.
    assert forward == pytest.approx((-back.high, -back.low), abs=2.01 / 2000)
    assert forward.low > 0 > back.high


def test_models_that_agree_are_compared_more_sharply_than_by_their_own_intervals():
    """The second is the first but for 12 of 1,000 examples, all of them better."""
    first = outcomes(1000, 0.6, 0)
    second = first.copy()
    second[np.flatnonzero(~first)[:12]] = True
    difference = intervals.of_difference(second, first)
    assert intervals.of_mean(first).high > second.mean() and difference.low > 0
    assert difference.low < 0.012 < difference.high


def test_there_is_no_spread_where_all_examples_are_alike():
    first = outcomes(100, 0.5, 0)
    assert intervals.of_difference(first, first) == (0, 0)
    assert intervals.of_mean(np.ones(9, bool)) == (1, 1)


def test_models_may_differ_on_every_example():
    """1 - 0.9 - 0.1 is below 0 in floating point, and no probability."""
    first = np.arange(10) < 9
    assert intervals.of_difference(first, ~first).high == 1


def test_a_difference_of_a_few_examples_excludes_zero_from_four_on():
    """Where McNemar's exact test asks for six, as the docstring says."""
    for count in range(1, 8):
        better = np.arange(400) < count
        assert (intervals.of_difference(better, np.zeros(400, bool)).low > 0) == (count >= 4)
        exact = scipy.stats.binomtest(count, count).pvalue
        assert (exact < 0.05) == (count >= 6)


def test_only_results_known_to_be_over_the_same_examples_are_paired():
    first, second = outcomes(100, 0.5, 0), outcomes(100, 0.7, 1)
    paired = intervals.spread(intervals.Outcomes(second, "a"), intervals.Outcomes(first, "a"))
    difference = (second.sum() - first.sum()) / 100
    assert paired == (*intervals.of_mean(second), difference, *intervals.of_difference(second, first))
    alone = (*intervals.of_mean(second), None, None, None)
    for own, other in (("a", "b"), ("", "")):
        assert intervals.spread(intervals.Outcomes(second, own), intervals.Outcomes(first, other)) == alone
    assert intervals.spread(intervals.Outcomes(second, "a"), None) == alone
