"""The largest batch that fits, and the cheapest rematerialisation that makes a batch fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxclip.config import Config
from jaxclip.plan.compiling import Plan, with_remat

# From the one that recomputes nothing to the one that recomputes most.
REMATS = ("none", "dots", "full")
# A device's pairs are tried in multiples of the eight rows that a TPU's registers have.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
      cheapest: of the config's own batch, the plan with the least recomputation that fits; None where none does.
      largest: by rematerialisation, the plan with the largest batch that fits; those with which not even the smallest
        does are missing.
    """

    cheapest: Plan | None
    largest: dict[str, Plan]


def search(config: Config, devices: int, hbm_bytes: int, compile_one: Callable[[Config], Plan]) -> Found:
    """Compiles until both questions are answered: some three programs for each rematerialisation.

    Args:
      config: of the run.
      devices: that its batch is divided among.
      hbm_bytes: of each.
      compile_one: gives a config's plan.
    """
    cheapest: Plan | None = None
    largest: dict[str, Plan] = {}
    for remat in REMATS:
        tried: dict[int, Plan] = {}

        def plan(rows: int, remat: str = remat, tried: dict[int, Plan] = tried) -> Plan:
            if rows not in tried:
                batch = rows * devices * config.microbatches
                tried[rows] = compile_one(dataclasses.replace(with_remat(config, remat), batch_size=batch))
            return tried[rows]

        own = config.batch_size // (devices * config.microbatches)
        if cheapest is None and plan(own).fits:
            cheapest = plan(own)
        best = _most_rows(own, hbm_bytes, plan)
        if best:
            largest[remat] = plan(best)
    return Found(cheapest, largest)


def _most_rows(rows: int, hbm_bytes: int, plan: Callable[[int], Plan]) -> int:
    """The most rows per device and micro-batch that fit, in multiples of `ROWS`; 0 where even those do not.

    What a row needs is all but constant, so each program tells where the limit must be about. The guess is compiled,
    and corrected until `low` fits and `high`, at most a sixteenth more, does not.
    """
    low, high = 0, 0
    rows = max(ROWS, rows // ROWS * ROWS)
    while not high or high - low > max(ROWS, low // 16 // ROWS * ROWS):
        tried = plan(rows)
        low, high = (rows, high) if tried.fits else (low, rows)
        fixed = tried.parts["parameters"] + tried.parts["optimizer state"]
        guess = int(rows * (hbm_bytes - fixed) / (tried.peak_hbm_bytes - fixed)) // ROWS * ROWS
        rows = min(max(guess, low + ROWS), high - ROWS if high else 8 * low)
    return low
