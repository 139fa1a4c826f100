"""Ranks compared with a stable sort, for any blocks and devices."""

from __future__ import annotations

import numpy as np
import pytest
from look_up import mesh_of

from jaxclip.evaluate.ranking import ranks, recalls


def sorted_ranks(queries, keys, query_groups, key_groups):
    """Sorts all keys of every query, and counts the wrong ones before the first right one, or all."""
    found = []
    for query, group in zip(queries, query_groups, strict=True):
        order = np.argsort(-(keys @ query), kind="stable")
        right = key_groups[order] == group
        found.append(np.count_nonzero(~right[: np.argmax(right)]) if right.any() else len(keys))
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
    np.testing.assert_array_equal(found.queries, sorted_ranks(query, key, query_groups, key_groups))
    np.testing.assert_array_equal(found.keys, sorted_ranks(key, query, key_groups, query_groups))


@pytest.mark.parametrize("devices", (1, 8))
def test_ranks_of_real_embeddings_do_not_depend_on_blocks_or_devices(devices):
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 60, 16)).astype(np.float32)
    groups = np.arange(60)
    expected = sorted_ranks(query.astype(np.float64), key.astype(np.float64), groups, groups)
    expected_of_keys = sorted_ranks(key.astype(np.float64), query.astype(np.float64), groups, groups)
    for chunk in (4096, 9):
        found = ranks(mesh_of(devices), query, key, groups, groups, chunk)
        np.testing.assert_array_equal(found.queries, expected)
        np.testing.assert_array_equal(found.keys, expected_of_keys)


def test_the_best_of_several_right_answers_determines_the_rank():
    query = np.array([[1.0]], np.float32)
    key = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]], np.float32)
    rank = lambda *groups: int(ranks(mesh_of(1), query, key, np.array([1]), np.array(groups)).queries[0])  # noqa: E731
    assert rank(1, 1, 1, 0, 0) == 0
    assert rank(0, 1, 1, 0, 1) == 1
    assert rank(0, 0, 0, 0, 1) == 4


@pytest.mark.parametrize("devices", (1, 8))
@pytest.mark.parametrize("chunk", (4096, 16))
def test_a_collapsed_model_gets_what_chance_gives(devices, chunk):
    """Equal similarities are ranked in the order of the keys, so one query in a hundred has its own first."""
    same = np.full((100, 8), 0.3, np.float32)
    numbers = np.random.default_rng(1).permutation(100)
    found = ranks(mesh_of(devices), same, same, numbers, np.arange(100), chunk)
    np.testing.assert_array_equal(found.queries, numbers)
    np.testing.assert_array_equal(found.keys, np.argsort(numbers))
    assert recalls(found.queries) == {1: 0.01, 5: 0.05, 10: 0.1}


def test_nan_ranks_last():
    rng = np.random.default_rng(2)
    query, key = rng.standard_normal((2, 10, 4)).astype(np.float32)
    numbers = np.arange(10)
    broken = np.full_like(key, np.nan)
    for pair in ((query, broken), (broken, key)):
        for found in ranks(mesh_of(1), *pair, numbers, numbers):
            np.testing.assert_array_equal(found, np.full(10, 9))
    one_broken = np.where(numbers[:, None] == 3, np.nan, key)
    found = ranks(mesh_of(1), query, one_broken.astype(np.float32), numbers, numbers).queries
    assert found[3] == 9
    others = [number for number in numbers if number != 3]
    kept = sorted_ranks(query[others], key[others], numbers[others], numbers[others])
    np.testing.assert_array_equal(found[others], kept)


def test_recalls_are_shares_of_the_queries():
    assert recalls(np.array([0, 0, 3, 7, 50])) == {1: 0.4, 5: 0.6, 10: 0.8}
    assert recalls(np.array([0, 1, 2, 3]), (2,)) == {2: 0.5}


@pytest.mark.parametrize("devices", (1, 8))
def test_none_is_its_own_positive_among_themselves(devices):
    rng = np.random.default_rng(3)
    rows, groups = rng.standard_normal((37, 5)).astype(np.float32), np.sort(rng.integers(0, 9, 37))
    scores = rows @ rows.T
    np.fill_diagonal(scores, np.nan)
    expected = []
    for row, group in enumerate(groups):
        own = [scores[row, other] for other in np.flatnonzero(groups == group) if other != row]
        wrong = scores[row, groups != group]
        expected.append(np.sum(wrong > max(own)) if own else len(wrong))
    found = ranks(mesh_of(devices), rows, rows, groups, groups, chunk=8, among_themselves=True)
    np.testing.assert_array_equal(found.queries, expected)
    np.testing.assert_array_equal(found.keys, expected)
