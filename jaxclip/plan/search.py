"""Search for the largest batch that fits, and for the cheapest rematerialization with which a batch fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxclip.config import Config
from jaxclip.plan.compiling import Plan, with_remat

# In order of increasing recomputation.
REMATS = ("none", "products", "mlp", "dots", "full")
# Pairs per device are tried in multiples of the eight rows of a TPU's registers.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
      cheapest: the plan with the least recomputation with which the config's batch fits; None if it never fits.
      largest: the plan with the largest batch that fits, by rematerialization; a key is missing if no batch fits.
    """

    cheapest: Plan | None
    largest: dict[str, Plan]


def search(config: Config, devices: int, hbm_bytes: int, compile_one: Callable[[Config], Plan]) -> SearchResult:
    """Runs the search, which compiles about three programs for each rematerialization.

    Args:
      config: of the run.
      devices: the number of devices.
      hbm_bytes: the memory of each device.
      compile_one: compiles a config.
    """
    cheapest: Plan | None = None
    largest: dict[str, Plan] = {}
    for remat in REMATS:
        plans: dict[int, Plan] = {}

        def plan(rows: int, remat: str = remat, plans: dict[int, Plan] = plans) -> Plan:
            if rows not in plans:
                batch = rows * devices * config.microbatches
                plans[rows] = compile_one(dataclasses.replace(with_remat(config, remat), batch_size=batch))
            return plans[rows]

        own = config.batch_size // (devices * config.microbatches)
        if cheapest is None and plan(own).fits:
            cheapest = plan(own)
        best = _most_rows(own, hbm_bytes, plan)
        if best:
            largest[remat] = plan(best)
    return SearchResult(cheapest, largest)


def _most_rows(rows: int, hbm_bytes: int, plan: Callable[[int], Plan]) -> int:
    """The most rows per device and micro-batch that fit, in multiples of `ROWS`; 0 if not even `ROWS` fit.

    The memory per row is almost constant, so each program gives an estimate of the limit. The estimate is compiled and
    refined until `low` fits and `high`, at most a sixteenth more, does not.
    """
    low, high = 0, 0
    rows = max(ROWS, rows // ROWS * ROWS)
    while not high or high - low > max(ROWS, low // 16 // ROWS * ROWS):
        current = plan(rows)
        low, high = (rows, high) if current.fits else (low, rows)
        fixed = current.parts["parameters"] + current.parts["optimizer state"]
        estimate = int(rows * (hbm_bytes - fixed) / (current.peak_hbm_bytes - fixed)) // ROWS * ROWS
        rows = min(max(estimate, low + ROWS), high - ROWS if high else 8 * low)
    return low
