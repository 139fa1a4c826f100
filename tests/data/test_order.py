"""The order of the data: a permutation per epoch, computed for any position without state."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from jaxclip.data import order


def epoch(seed: int, number: int, length: int) -> np.ndarray:
    """The record ids of one epoch, in their order."""
    ids, epochs = order.Shuffled(seed, length)(np.arange(number * length, (number + 1) * length))
    assert (epochs == number).all()
    return ids


@pytest.mark.parametrize("lengths", [range(start, start + 40) for start in range(1, 201, 40)])
def test_every_epoch_holds_every_record_once(lengths):
    for length in lengths:
        for number in (0, 1, 7):
            assert sorted(epoch(3, number, length)) == list(range(length)), (length, number)


@pytest.mark.parametrize("length", [255, 256, 257, 4095, 4096, 4097, 65_537, 1_000_003])
def test_every_epoch_of_a_longer_source_holds_every_record_once(length):
    assert np.array_equal(np.sort(epoch(0, 2, length)), np.arange(length))


@pytest.mark.parametrize("length", [2**31 + 1, 10_000_000_000, 2**53 + 1, 2**62])
def test_a_source_of_billions_has_an_order_too(length):
    # Every position would take hours: some thousands from all over must fall into the range, and no two on one record.
    positions = np.unique(np.random.default_rng(0).integers(0, length, 5000))
    ids, epochs = order.Shuffled(1, length)(positions)
    assert (epochs == 0).all()
    assert ids.min() >= 0 and ids.max() < length
    assert len(np.unique(ids)) == len(positions)
    assert abs(ids.mean() / length - 0.5) < 0.02


def test_the_first_positions_of_a_source_of_billions_are_spread_over_all_of_it():
    ids, _ = order.Shuffled(0, 10_000_000_000)(np.arange(4000))
    assert len(np.unique(ids)) == 4000
    counts, _ = np.histogram(ids, bins=10, range=(0, 10_000_000_000))
    assert counts.min() > 300 and counts.max() < 500  # 400 +- 19 (one standard deviation) each


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 0)), ((5, 0), (4, 1))],
    ids=["the next epoch", "another seed", "seed and epoch swapped", "the same sum"],
)
def test_another_epoch_or_seed_has_another_order(one, other):
    # Two random permutations share one place on average; 12 shared places have a probability of 1e-9.
    assert (epoch(*one, 1000) == epoch(*other, 1000)).sum() < 12


def test_two_epochs_are_not_the_same_order_shifted():
    first, second = epoch(0, 0, 997), epoch(0, 1, 997)
    shifts = np.bincount((np.argsort(second) - np.argsort(first)) % 997, minlength=997)
    assert shifts.max() < 12


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 37), (36, 40), (100, 333), (399, 400)])
def test_any_slice_of_the_sequence_equals_the_same_slice_of_the_whole(start, stop):
    whole_ids, whole_epochs = order.Shuffled(9, 37)(np.arange(400))
    ids, epochs = order.Shuffled(9, 37)(np.arange(start, stop))
    assert np.array_equal(ids, whole_ids[start:stop])
    assert np.array_equal(epochs, whole_epochs[start:stop])


def test_positions_may_come_in_any_order():
    positions = np.array([50, 3, 77, 3, 0])
    ids, epochs = order.Shuffled(2, 20)(positions)
    assert epochs.tolist() == [2, 0, 3, 0, 0]
    assert ids.tolist() == [int(order.Shuffled(2, 20)(positions[i : i + 1])[0][0]) for i in range(5)]


def test_a_record_is_equally_often_at_every_position():
    """Chi-squared of the place of record 0 in 4000 epochs of 8 records; 7 degrees of freedom, 32 is p = 4e-5."""
    positions = np.arange(4000 * 8)
    ids, _ = order.Shuffled(0, 8)(positions)
    places = np.bincount(np.nonzero(ids.reshape(4000, 8) == 0)[1], minlength=8)
    assert ((places - 500) ** 2 / 500).sum() < 32, places


def test_neighbors_in_the_source_do_not_stay_neighbors():
    place = np.argsort(epoch(0, 0, 10_000))
    # Of a random order two neighbors are adjacent with probability 2 / 10,000: two such pairs are expected.
    assert (np.abs(np.diff(place)) == 1).sum() < 15


@pytest.mark.parametrize("length", [1, 2, 7, 1000, 10_000_000_000])
def test_a_substitute_is_in_the_source_and_always_the_same(length):
    found = [order.substitute(4, position, attempt, range(length)) for position in range(50) for attempt in range(4)]
    assert all(0 <= record < length for record in found)
    assert found == [
        order.substitute(4, position, attempt, range(length)) for position in range(50) for attempt in range(4)
    ]


def test_substitutes_differ_by_seed_position_and_attempt():
    length = 10**9
    found = {
        order.substitute(*key, range(length)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 10**12, 0)]
    }
    assert len(found) == 5


def test_a_records_randomness_is_a_function_of_seed_epoch_and_record():
    def draw(seed: int, epoch: int, record: int) -> list[float]:
        (key,) = order.record_keys(seed, np.array([epoch]), np.array([record])).tolist()
        return order.record_rng(key).random(5).tolist()

    first = draw(1, 2, 3)
    assert first == draw(1, 2, 3)
    for key in [(0, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1)]:
        assert first != draw(*key), key


def test_a_hash_does_not_depend_on_what_is_hashed_beside_it():
    left, right = np.arange(100), np.arange(100)[::-1]
    together = order.hash_ints(7, left, right)
    alone = [int(order.hash_ints(7, int(a), int(b))) for a, b in zip(left, right, strict=True)]
    assert together.dtype == np.uint64
    assert together.tolist() == alone
    assert len(set(alone)) == 100


def test_a_hash_tells_its_arguments_apart():
    parts = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**63,)]
    assert len({int(order.hash_ints(*part)) for part in parts}) == len(parts)


CHUNKS = {
    "equal": np.arange(1, 41) * 25,
    "uneven": np.cumsum(np.random.default_rng(0).integers(1, 60, 33)),
    "empty ones": np.cumsum([5, 0, 7, 0, 0, 30, 1]),
    "one": np.array([100]),
}


@pytest.mark.parametrize("window", [1, 50, 10_000])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_every_epoch_in_windows_is_a_permutation(chunks, window):
    ends = CHUNKS[chunks]
    length = int(ends[-1])
    ids, epochs = order.ShuffledInWindows(3, ends, window)(np.arange(3 * length))
    assert epochs.tolist() == np.repeat([0, 1, 2], length).tolist()
    for epoch in ids.reshape(3, length):
        assert sorted(epoch.tolist()) == list(range(length))
    if length > 50:
        assert len({tuple(epoch) for epoch in ids.reshape(3, length).tolist()}) == 3


def test_only_the_chunks_of_one_window_are_read_at_a_time():
    ends = np.arange(1, 1001) * 100
    ids, _ = order.ShuffledInWindows(0, ends, 1600)(np.arange(100_000))
    windows = (ids // 100).reshape(-1, 1600 if 100_000 % 1600 == 0 else 100)
    assert {len(np.unique(ids[start : start + 1600] // 100)) for start in range(0, 99_200, 1600)} == {16}
    # Within a window its chunks are mixed: a hundred rows in a row come from most of the sixteen.
    assert np.mean([len(np.unique(row)) for row in windows]) > 14


def test_windows_are_a_function_of_the_position_alone():
    ends = CHUNKS["uneven"]
    make = functools.partial(order.ShuffledInWindows, 5, ends, 90)
    whole, _ = make()(np.arange(4000))
    rng = np.random.default_rng(1)
    for start in rng.integers(0, 3990, 50):
        np.testing.assert_array_equal(make()(np.arange(start, start + 10))[0], whole[start : start + 10])
    places = rng.permutation(4000)
    np.testing.assert_array_equal(make()(places)[0], whole[places])


def mixed(shares, lengths, seed: int = 0) -> order.Mixed:
    return order.Mixed(seed, shares, lengths, [order.Shuffled(seed + 1 + i, n) for i, n in enumerate(lengths)])


@pytest.mark.parametrize(
    ("shares", "lengths"), [((7, 3), (100, 100)), ((1, 2, 5), (13, 400, 7)), ((1,), (9,)), ((999, 1), (50, 50))]
)
def test_shares_are_exact_in_every_cycle(shares, lengths):
    cycle = sum(shares)
    ids, _ = mixed(shares, lengths)(np.arange(40 * cycle))
    of_source = np.searchsorted(np.cumsum(lengths), ids, side="right").reshape(40, cycle)
    for row in of_source:
        assert np.bincount(row, minlength=len(shares)).tolist() == list(shares)
    if cycle > 5 and len(shares) > 1:
        assert len({tuple(row) for row in of_source.tolist()}) > 10  # not always at the same places


def test_a_mixed_source_goes_through_its_own_epochs():
    ids, epochs = mixed((2, 1), (30, 8))(np.arange(3 * 240))
    for source, first, length, share in ((0, 0, 30, 2), (1, 30, 8, 1)):
        inside = (ids >= first) & (ids < first + length)
        # In the order of the positions each cycle is shuffled, so an epoch is whole up to one cycle at its ends.
        for epoch in range(240 * share // length):
            assert sorted(ids[inside & (epochs == epoch)].tolist()) == list(range(first, first + length)), source


def test_a_mixture_is_a_function_of_the_position_alone():
    whole = mixed((3, 2), (50, 20))(np.arange(1000))
    places = np.random.default_rng(0).permutation(1000)
    for part, expected in zip(mixed((3, 2), (50, 20))(places), whole, strict=True):
        np.testing.assert_array_equal(part, expected[places])
