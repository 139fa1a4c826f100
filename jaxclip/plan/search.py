"""Search for the cheapest rematerialization with which a batch fits, and for the largest batch with each.

A whole model takes the TPU's compiler minutes, a few layers of it one. So each rematerialization is judged by models of
two and three layers: what one layer more costs, all others do. Only the one that is chosen is compiled whole. Memory is
overestimated so: of a whole model the compiler computes by itself again what would not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from jaxclip import methods
from jaxclip.config import Config
from jaxclip.plan.compiling import Plan, Traffic, with_remat

# In order of increasing recomputation. "products" is left out: the TPU's compiler does as much by itself.
REMATS = ("none", "dots", "full")
# Pairs per device are tried in multiples of the eight rows of a TPU's registers.
ROWS = 8
FEW = 2


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
      cheapest: the plan with the least recomputation with which the config's batch fits, compiled whole; None if it
        never fits.
      estimates: by rematerialization, the plan of the config's batch, from a few layers.
      largest: by rematerialization, the largest batch that fits, if memory grows in proportion to it; 0 if none does.
    """

    cheapest: Plan | None
    estimates: dict[str, Plan]
    largest: dict[str, int]


def search(config: Config, devices: int, hbm_bytes: int, compile_one: Callable[[Config], Plan]) -> SearchResult:
    """Runs the search: for each rematerialization, two programs and one for each tower of layers; and one whole.

    Args:
      config: of the run.
      devices: the number of devices.
      hbm_bytes: the memory of each device.
      compile_one: compiles a config.
    """
    estimates, largest = {}, {}
    for remat in REMATS:
        plan = estimates[remat] = extrapolated(with_remat(config, remat), hbm_bytes, compile_one)
        fixed = plan.parts["parameters"] + plan.parts["optimizer state"]
        unit = ROWS * devices * config.microbatches
        room = (hbm_bytes - fixed) / max(1, plan.peak_hbm_bytes - fixed)
        largest[remat] = max(0, int(config.batch_size * room) // unit * unit)
    for remat in REMATS:
        if estimates[remat].fits:
            whole = compile_one(with_remat(config, remat))
            if whole.fits:
                return SearchResult(whole, estimates, largest)
    return SearchResult(None, estimates, largest)


def extrapolated(config: Config, hbm_bytes: int, compile_one: Callable[[Config], Plan]) -> Plan:
    """The plan of a config, from programs in which its towers have two and three layers.

    Towers that are no stacks of equal layers, such as ResNets, are compiled as they are.
    """
    deep = _deep(config)
    if not deep:
        return compile_one(config)
    base = compile_one(_with_depths(config, dict.fromkeys(deep, FEW)))
    plan = base
    for tower, (layers, unit) in deep.items():
        more = compile_one(_with_depths(config, dict.fromkeys(deep, FEW) | {tower: FEW + unit}))
        plan = _added(plan, base, more, (layers - FEW) // unit)
    return dataclasses.replace(plan, fits=plan.peak_hbm_bytes <= hbm_bytes)


def _added(plan: Plan, base: Plan, more: Plan, layers: int) -> Plan:
    """A plan with so many times the difference between two others added."""

    def line(now: int, first: int, last: int) -> int:
        return now + layers * (last - first)

    def lines(now: Mapping[str, int], first: Mapping[str, int], last: Mapping[str, int]) -> dict[str, int]:
        return {name: line(now.get(name, 0), first.get(name, 0), last.get(name, 0)) for name in {**now, **last}}

    found = dataclasses.replace(
        plan,
        parts=lines(plan.parts, base.parts, more.parts),
        peak_hbm_bytes=line(plan.peak_hbm_bytes, base.peak_hbm_bytes, more.peak_hbm_bytes),
        model_flops=plan.model_flops + layers * (more.model_flops - base.model_flops),
        compile_seconds=plan.compile_seconds + more.compile_seconds,
    )
    three = (plan, base, more)
    cycles = [each.estimated_cycles for each in three if each.estimated_cycles is not None]
    if len(cycles) < len(three):
        # Not even a few layers fit.
        return dataclasses.replace(found, estimated_cycles=None, kernel_cycles=None, cycles_by_kind=None)
    counts, sizes = (
        lines(*({kind: getattr(item, name) for kind, item in (each.collectives or {}).items()} for each in three))
        for name in ("count", "bytes")
    )
    return dataclasses.replace(
        found,
        collectives={kind: Traffic(counts[kind], sizes[kind]) for kind in sizes},
        estimated_cycles=line(*cycles),
        kernel_cycles=line(*(each.kernel_cycles or 0 for each in three)),
        cycles_by_kind=lines(*(each.cycles_by_kind or {} for each in three)),
    )


def _deep(config: Config) -> dict[str, tuple[int, int]]:
    """The layers of each tower that has many equal ones, and in what units: one more of each half of a BERT is two."""
    method = methods.from_config(config.method)
    deep = {}
    for field in dataclasses.fields(method):
        tower = getattr(method, field.name)
        layers, lower = getattr(tower, "layers", 0), getattr(tower, "lower", None)
        unit = 1 if lower is None else 2
        # Halves of a BERT that are given as such, and not as a share, do not fit fewer layers.
        if isinstance(layers, int) and layers > FEW + unit and (layers - FEW) % unit == 0 and lower in (None, -1):
            deep[field.name] = (layers, unit)
    return deep


def _with_depths(config: Config, layers: dict[str, int]) -> Config:
    towers = {tower: dict(config.method[tower]) | {"layers": count} for tower, count in layers.items()}
    return dataclasses.replace(config, method=dict(config.method) | towers)
