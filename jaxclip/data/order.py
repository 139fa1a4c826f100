"""Which record stands at which position: pure functions of (seed, position), with no state to keep or restore."""

from __future__ import annotations

import numpy as np

_ROUNDS = 6


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash (the finaliser of SplitMix64, Steele et al. 2014); uint64 in and out."""
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
    """Where a keyed permutation of range(length) sends each index.

    A Feistel network over the smallest even number of bits that holds `length`; results outside the range are sent
    through again until they fall inside (cycle walking; Black and Rogaway 2002, section 4), so that it is an exact
    permutation of any length without a table.

    Args:
      index: int64 [n], each in [0, length).
      length: of the range.
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


def shuffled(seed: int, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Training order: every epoch is a permutation of all records, and batches run across epoch ends.

    Args:
      seed: of the run.
      positions: int64 [n], positions in the endless sequence of training examples (step * batch_size + row).
      length: records in the source.

    Returns:
      The record ids and the epochs, int64 [n] each.
    """
    epochs, offsets = np.divmod(positions, length)
    return permute(offsets, length, hash_ints(seed, epochs)), epochs


def substitute(seed: int, position: int, attempt: int, length: int) -> int:
    """The record that takes the place of an unreadable one: the same on every host and after every restart."""
    return int(hash_ints(seed, position, attempt) % np.uint64(length))


def record_rng(seed: int, epoch: int, record: int) -> np.random.Generator:
    """The randomness of one record in one epoch (crop, flip, choice of caption)."""
    return np.random.Generator(np.random.Philox(key=hash_ints(seed, epoch, record)))
