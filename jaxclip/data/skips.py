"""What is passed over because it cannot be used: counted by reason, and too much of it stops the run."""

from __future__ import annotations

import collections
import threading

from jaxclip.errors import UserError
from jaxclip.io import printable


class SkipLog:
    """Counts skipped records by reason and remembers one of each; safe to use from several threads.

    Attributes:
      counts: by reason.
    """

    def __init__(self, limit: float = 1.0, block: int = 1000) -> None:
        """Args:
        limit: the greatest share of unusable records among each `block` that come up.
        block: 1,000 tell 10 % from 13 %.
        """
        self.counts: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, str] = {}
        self._lock = threading.Lock()
        self._limit, self._block = limit, block
        self._came_up = self._unusable = 0  # in the block that is being filled

    def add(self, reason: str, key: str) -> None:
        """Counts a record that cannot be used."""
        with self._lock:
            self.counts[reason] += 1
            self._examples.setdefault(reason, printable(key))

    def check_rate(self, came_up: int, unusable: int) -> None:
        """Notes records whose turn came up, and how many of them cannot be used. What stands in for one is no turn.

        Raises:
          UserError: since a block was last full, a larger share than the limit could not be used.
        """
        with self._lock:
            self._came_up += came_up
            self._unusable += unusable
            came_up, unusable = self._came_up, self._unusable
            if came_up < self._block:
                return
            self._came_up = self._unusable = 0
        if unusable > self._limit * came_up:
            raise UserError(
                f"data.train: {unusable:,} of the last {came_up:,} records cannot be used, more than "
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
