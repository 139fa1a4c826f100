"""Weighted mixtures of sources, and the training order, chunks and samples of any source."""

from __future__ import annotations

import bisect
import fractions
import itertools
import math
from collections.abc import Sequence

import numpy as np

from jaxclip.data.order import Mixed, Order, Shuffled, ShuffledInWindows, hash_ints
from jaxclip.data.record import Record, Skip, Source
from jaxclip.errors import UserError

_ATTEMPTS_IN_CHUNK = 8
_CHUNKS_SAMPLED = 16


class Mixture:
    """The records of several sources, one source after the other.

    Attributes:
      sources: the sources.
      shares: integers in the ratio of the weights.
    """

    chunk_ends = None  # each source keeps its own, see `training_order`

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None):
        """Mixes sources.

        Args:
          sources: at least one.
          weights: each source's relative share of the training examples. If None, every record of every source is used
            once per epoch.

        Raises:
          UserError: a weight is not positive, or the weights have too many digits.
        """
        self.sources = tuple(sources)
        self._ends = list(itertools.accumulate(len(source) for source in sources))
        for weight in weights or ():
            if not (0 < weight < math.inf):
                raise UserError(f"the weight {weight} of a source must be above 0")
        # Weights are exact decimal numbers: 0.7 and 0.3 are 7 of 10 and 3 of 10, to the last record.
        parts = [fractions.Fraction(repr(weight)) for weight in weights or map(len, sources)]
        unit = math.lcm(*(part.denominator for part in parts))
        whole = [int(part * unit) for part in parts]
        self.shares = tuple(share // math.gcd(*whole) for share in whole)
        if sum(self.shares) >= 1 << 62:
            raise UserError(f"the weights {tuple(weights or ())} of the sources have too many digits; round them")

    @property
    def class_names(self) -> Sequence[str]:
        """The sources' class names if they all have the same ones, else empty."""
        first, *others = (source.class_names for source in self.sources)
        return first if all(list(names) == list(first) for names in others) else ()

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with one read per source."""
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(ids):
            rows.setdefault(self.number_of(index), []).append(row)
        records: dict[int, Record | Skip] = {}
        for number, of_source in rows.items():
            first = self.ids_of(number).start
            read = self.sources[number].read([ids[row] - first for row in of_source])
            records |= zip(of_source, read, strict=True)
        return [records[row] for row in range(len(ids))]

    def number_of(self, index: int) -> int:
        """The number of the source that a record belongs to."""
        return bisect.bisect_right(self._ends, index)

    def ids_of(self, number: int) -> range:
        """The ids of a source's records."""
        return range(self._ends[number - 1] if number else 0, self._ends[number])


def training_order(source: Source, seed: int, window: int) -> Order:
    """The training order of a source.

    Args:
      source: the training data.
      seed: of the order.
      window: the number of records that are shuffled together in a chunked source.
    """
    if isinstance(source, Mixture):
        orders = [
            training_order(part, int(hash_ints(seed, number, 2)), window) for number, part in enumerate(source.sources)
        ]
        return Mixed(seed, source.shares, [len(part) for part in source.sources], orders)
    if source.chunk_ends is None:
        return Shuffled(seed, len(source))
    return ShuffledInWindows(seed, source.chunk_ends, window)


def may_replace(source: Source, index: int, attempt: int) -> range:
    """The ids of the records that may replace the unusable record `index`; they belong to the same source.

    The first attempts stay in its chunk, which has been read already. Later ones do not, because the whole chunk may be
    damaged.
    """
    if isinstance(source, Mixture):
        number = source.number_of(index)
        first = source.ids_of(number).start
        among = may_replace(source.sources[number], index - first, attempt)
        return range(first + among.start, first + among.stop)
    if source.chunk_ends is None or attempt >= _ATTEMPTS_IN_CHUNK:
        return range(len(source))
    chunk = int(np.searchsorted(source.chunk_ends, index, side="right"))
    return range(int(source.chunk_ends[chunk - 1]) if chunk else 0, int(source.chunk_ends[chunk]))


def spread(source: Source, count: int) -> list[int]:
    """Increasing ids of about `count` records spread over a source; in a chunked one, equally many in a few chunks."""
    if isinstance(source, Mixture):
        shares = [max(1, count * len(part) // len(source)) for part in source.sources]
        parts = [spread(part, share) for part, share in zip(source.sources, shares, strict=True)]
        return [source.ids_of(number).start + index for number, part in enumerate(parts) for index in part]
    if source.chunk_ends is None:
        return np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64)).tolist()
    ends = source.chunk_ends
    chunks = np.unique(np.linspace(0, len(ends) - 1, _CHUNKS_SAMPLED).astype(np.int64))
    starts = np.where(chunks > 0, ends[chunks - 1], 0)
    within = [
        np.linspace(start, end - 1, -(-count // len(chunks)))
        for start, end in zip(starts, ends[chunks], strict=True)
        if end > start
    ]
    return np.unique(np.concatenate(within).astype(np.int64)).tolist()


def is_chunked(source: Source) -> bool:
    """Whether any part of a source is read in chunks."""
    parts = source.sources if isinstance(source, Mixture) else [source]
    return any(part.chunk_ends is not None for part in parts)


def chunk_numbers(source: Source, ids: np.ndarray) -> np.ndarray:
    """The chunk number of each id, int64 [n]; a source without chunks counts as one chunk."""
    if not isinstance(source, Mixture):
        ends = source.chunk_ends
        return np.zeros(len(ids), np.int64) if ends is None else np.searchsorted(ends, ids, side="right")
    numbers, first = np.zeros(len(ids), np.int64), 0
    for number, part in enumerate(source.sources):
        of_part = source.ids_of(number)
        inside = np.flatnonzero((ids >= of_part.start) & (ids < of_part.stop))
        numbers[inside] = first + chunk_numbers(part, ids[inside] - of_part.start)
        first += 1 if part.chunk_ends is None else len(part.chunk_ends)
    return numbers
