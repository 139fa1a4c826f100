"""Training order: pure functions from (seed, position) to record ids, without state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

# Maps positions in the endless sequence of training examples, int64 [n], to record ids and epochs, int64 [n] each.
Order = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

_ROUNDS = 6


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of uint64 values (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_ints(*parts: int | np.ndarray) -> np.ndarray:
    """A uint64 hash of integers, elementwise over arrays of one shape."""
    with np.errstate(over="ignore"):
        state = np.zeros(np.broadcast_shapes(*(np.shape(part) for part in parts)), np.uint64)
        for part in parts:
            state = _mix(state ^ np.asarray(part).astype(np.uint64))
    return state


def permute(index: np.ndarray, length: int, key: np.ndarray) -> np.ndarray:
    """Applies a keyed permutation of range(length) to each index, int64 [n].

    The permutation is a Feistel network over the smallest even number of bits that holds `length`. Results outside the
    range are permuted again until they fall inside (cycle walking; Black and Rogaway 2002, section 4). This gives an
    exact permutation of any length without a table.

    Args:
      index: int64 [n], each in [0, length).
      length: the length of the range.
      key: uint64 [n], one per index; equal keys give the same permutation.
    """
    half = np.uint64(max(1, (max(length - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (hash_ints(key[todo], number, right) & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= length]
    return result.astype(np.int64)


class Shuffled:
    """Training order in which every epoch is a permutation of all records. Batches run across epoch boundaries.

    Nothing is stored, so the cost does not depend on the number of records.
    """

    def __init__(self, seed: int, length: int):
        self._seed, self._length = seed, length

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The record ids and epochs, int64 [n] each, at positions in the endless sequence of training examples.

        A position is step * batch_size + row, int64 [n].
        """
        epochs, offsets = np.divmod(positions, self._length)
        return permute(offsets, self._length, hash_ints(self._seed, epochs)), epochs


class ShuffledInWindows:
    """Training order for sources that are read in chunks. Every epoch is again a permutation of all records.

    Each epoch shuffles the chunks, and then the records within windows of a few consecutive chunks. So only the chunks
    of one window are read at a time.
    """

    def __init__(self, seed: int, chunk_ends: np.ndarray, window: int):
        """Creates the order.

        Args:
          seed: of the permutations.
          chunk_ends: int64 [chunks], see `Source.chunk_ends`.
          window: the number of records in a window, rounded to whole chunks.
        """
        self._seed = seed
        self._starts = np.concatenate([[0], chunk_ends[:-1]])
        self._sizes = np.diff(chunk_ends, prepend=0)
        self._length = int(chunk_ends[-1])
        self._chunks = max(1, round(window * len(chunk_ends) / self._length))
        self._epoch = functools.lru_cache(maxsize=2)(self._lay_out)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Shuffled`."""
        epochs, offsets = np.divmod(positions, self._length)
        ids = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            chunks, ends, window_ends = self._epoch(int(epoch))
            windows = np.searchsorted(window_ends, offsets[rows], side="right")
            for window in np.unique(windows):
                inside = rows[windows == window]
                start = int(window_ends[window - 1]) if window else 0
                key = np.broadcast_to(hash_ints(self._seed, epoch, window, 1), len(inside))
                places = start + permute(offsets[inside] - start, int(window_ends[window]) - start, key)
                rank = np.searchsorted(ends, places, side="right")
                ids[inside] = self._starts[chunks[rank]] + places - (ends[rank] - self._sizes[chunks[rank]])
        return ids, epochs

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An epoch's order of the chunks, and the positions in the epoch at which chunks and windows end."""
        chunks = np.argsort(hash_ints(self._seed, epoch, np.arange(len(self._sizes))), kind="stable")
        ends = np.cumsum(self._sizes[chunks])
        window_ends = ends[self._chunks - 1 :: self._chunks]
        if not len(window_ends) or window_ends[-1] != self._length:
            window_ends = np.append(window_ends, self._length)
        return chunks, ends, window_ends


class Mixed:
    """Training order over several sources.

    Examples are drawn in blocks of `sum(shares)`. Each source contributes exactly its share to every block, at random
    positions. Each source has its own epochs and its own order.
    """

    def __init__(self, seed: int, shares: Sequence[int], lengths: Sequence[int], orders: Sequence[Order]):
        """Args:
        seed: of the positions within a block.
        shares: the number of examples of each source in a block of `sum(shares)`.
        lengths: the number of records of each source; ids number the sources' records consecutively.
        orders: the order of each source.
        """
        self._seed, self._orders = seed, orders
        self._shares, self._ends = np.array(shares), np.cumsum(shares)
        self._first_ids = np.cumsum([0, *lengths[:-1]])

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Shuffled`; the epoch is that of the record's source."""
        cycle = int(self._ends[-1])
        blocks, offsets = np.divmod(positions, cycle)
        slots = permute(offsets, cycle, hash_ints(self._seed, blocks))
        sources = np.searchsorted(self._ends, slots, side="right")
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            rows = np.flatnonzero(sources == source)
            share = int(self._shares[source])
            within = blocks[rows] * share + slots[rows] - (self._ends[source] - share)
            ids[rows], epochs[rows] = self._orders[source](within)
            ids[rows] += self._first_ids[source]
        return ids, epochs


def substitute(seed: int, position: int, attempt: int, among: range) -> int:
    """The record that replaces an unreadable one. It is the same on every host and after every restart.

    Args:
      seed: of the run.
      position: of the unreadable record in the training order.
      attempt: counts the replacements tried at this position.
      among: the ids of the candidates.
    """
    return among.start + int(hash_ints(seed, position, attempt) % np.uint64(len(among)))


def record_keys(seed: int, epochs: int | np.ndarray, records: int | np.ndarray) -> np.ndarray:
    """Seeds of each record's randomness in its epoch (crop, flip, choice of caption), uint64 [n]."""
    return hash_ints(seed, epochs, records)


def record_rng(key: int) -> np.random.Generator:
    """The random generator for one of `record_keys`."""
    return np.random.Generator(np.random.Philox(key=key))
