"""Counts of skipped records by reason, and the limit above which a run stops."""

from __future__ import annotations

import collections
import threading

from jaxclip.errors import UserError
from jaxclip.io import printable


class SkipLog:
    """Thread-safe counts of skipped records by reason, with one example of each.

    Attributes:
      counts: the number of skipped records by reason.
    """

    def __init__(self, limit: float = 1.0, block: int = 1000) -> None:
        """Args:
        limit: maximum fraction of unusable records in each block of draws.
        block: the number of draws in a block; 1,000 are enough to tell 10 % from 13 %.
        """
        self.counts: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, str] = {}
        self._lock = threading.Lock()
        self._limit, self._block = limit, block
        self._num_drawn = self._num_unusable = 0  # in the current block

    def add(self, reason: str, key: str) -> None:
        """Counts an unusable record."""
        with self._lock:
            self.counts[reason] += 1
            self._examples.setdefault(reason, printable(key))

    def check_rate(self, num_drawn: int, num_unusable: int) -> None:
        """Records how many records were drawn and how many were unusable. Replacements do not count as draws.

        Raises:
          UserError: the fraction of unusable records in a full block exceeds the limit.
        """
        with self._lock:
            self._num_drawn += num_drawn
            self._num_unusable += num_unusable
            num_drawn, num_unusable = self._num_drawn, self._num_unusable
            if num_drawn < self._block:
                return
            self._num_drawn = self._num_unusable = 0
        if num_unusable > self._limit * num_drawn:
            raise UserError(
                f"data.train: {num_unusable:,} of the last {num_drawn:,} records cannot be used, more than "
                f"data.max_skip_rate={self._limit} allows; in all {self}"
            )

    def example(self, reason: str) -> str:
        """The key of one record that was skipped for this reason."""
        return self._examples[reason]

    @property
    def total(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        with self._lock:
            return "; ".join(
                f"{n:,} x {reason} (such as {self._examples[reason]})" for reason, n in self.counts.items()
            )
