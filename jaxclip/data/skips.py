"""What is passed over because it cannot be used: counted by reason, and too much of it stops the run."""

from __future__ import annotations

import collections
import threading

from jaxclip.errors import UserError

# The share of unusable records is judged on so many at a time: 1,000 tell 10 % from 13 %.
_BLOCK = 1000


class SkipLog:
    """Counts skipped records by reason and remembers one of each; safe to use from several threads.

    Attributes:
      counts: by reason.
    """

    def __init__(self, limit: float = 1.0) -> None:
        """Args:
        limit: the greatest share of unusable records among each 1,000 that are looked at.
        """
        self.counts: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, str] = {}
        self._lock = threading.Lock()
        self._limit = limit
        self._looked_at = self._skipped = 0  # in the block that is being filled

    def add(self, reason: str, key: str) -> None:
        """Counts a record that cannot be used."""
        with self._lock:
            self.counts[reason] += 1
            self._skipped += 1
            self._examples.setdefault(reason, key)

    def check_rate(self, looked_at: int) -> None:
        """Counts records that were looked at, the skipped ones included.

        Raises:
          UserError: of the last 1,000 a larger share than the limit was skipped.
        """
        with self._lock:
            self._looked_at += looked_at
            looked_at, skipped = self._looked_at, self._skipped
            if looked_at < _BLOCK:
                return
            self._looked_at = self._skipped = 0
        if skipped > self._limit * looked_at:
            raise UserError(
                f"data.train: {skipped:,} of the last {looked_at:,} records cannot be used, more than "
                f"data.max_skip_rate={self._limit} allows; in all {self}"
            )

    def example(self, reason: str) -> str:
        """A record that was skipped for the reason: its key."""
        return self._examples[reason]

    @property
    def total(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        with self._lock:
            return "; ".join(
                f"{n:,} x {reason} (such as {self._examples[reason]})" for reason, n in self.counts.items()
            )
