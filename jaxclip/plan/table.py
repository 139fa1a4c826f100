"""Text and JSON output of plans and searches."""

from __future__ import annotations

from typing import Any

from jaxclip.plan.chips import GIB, Topology
from jaxclip.plan.compiling import Plan
from jaxclip.plan.search import SearchResult


def table(plan: Plan, topology: Topology) -> str:
    """A plan as text, one line per fact."""
    devices, hbm = len(topology.devices), topology.chip.hbm_bytes
    spare = hbm - plan.peak_hbm_bytes
    if plan.fits:
        verdict = f"yes, {_size(spare)} of {_size(hbm)} per device to spare"
    else:
        verdict = f"no: needs at least {_size(plan.peak_hbm_bytes)} per device, {_size(-spare)} more than {_size(hbm)}"
    lines = [
        ("topology", str(topology)),
        ("fits", verdict),
        ("batch", _batch(plan, devices)),
        ("peak HBM", f"{_size(plan.peak_hbm_bytes)} per device"),
    ]
    lines += [("", f"{_size(size):>10}  {name}") for name, size in plan.parts.items()]
    for number, (kind, traffic) in enumerate((plan.collectives or {}).items()):
        name = "collectives" if number == 0 else ""
        lines.append((name, f"{_size(traffic.bytes):>10}  {kind} x {traffic.count:,} per step and device"))
    if plan.estimated_cycles:
        seconds, mfu, images = plan.seconds(topology), plan.estimated_mfu(topology), plan.images_per_second(topology)
        assert seconds and mfu and images
        lines += [
            ("compute", f"{plan.estimated_cycles:,} cycles by the compiler's estimate, {seconds * 1e3:,.0f} ms a step"),
            ("model", f"{plan.model_flops / plan.batch_size / 1e9:,.1f} GFLOP per pair, forward and backward"),
            (
                "bound",
                f"MFU {mfu:.0%}, {images:,.0f} pairs/s (estimates; communication and input cost nothing in them)",
            ),
        ]
        lines += _shares(plan, topology)
        if plan.unknown_loops:
            lines.append(("", f"{plan.unknown_loops} loops of unknown length are counted once"))
    lines.append(("compiled in", f"{plan.compile_seconds:.0f} s"))
    if not plan.fits:
        lines.append(("what helps", advice(plan)))
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _shares(plan: Plan, topology: Topology) -> list[tuple[str, str]]:
    """What the cycles are spent on, and the bound that the products alone set."""
    lines = []
    for number, (kind, cycles) in enumerate((plan.cycles_by_kind or {}).items()):
        share = cycles / (plan.estimated_cycles or 1)
        lines.append(("cycles" if number == 0 else "", f"{cycles / 1e6:>10,.1f} M  {share:>4.0%}  {kind}"))
    if plan.kernel_cycles:
        lines.append(("", f"{plan.kernel_cycles / 1e6:>10,.1f} M  of them in kernels, as scheduled by the compiler"))
    if ceiling := plan.ceiling(topology):
        lines.append(("ceiling", f"MFU {ceiling:.0%} of a step that were nothing but these products"))
    return lines


def advice(plan: Plan) -> str:
    """The settings to change if a plan does not fit."""
    devices = plan.mesh["data"] * plan.mesh["fsdp"]
    rows = plan.batch_size // (devices * plan.microbatches)
    state = plan.parts["parameters"] + plan.parts["optimizer state"]
    steps = []
    if plan.remat != "full":
        steps.append("remat='full' in config.method.image and .text")
    if rows > 1:
        steps.append(f"config.microbatches={plan.microbatches * _least_factor(rows)}")
    if state > plan.peak_hbm_bytes / 4 and plan.mesh["data"] > 1:
        fsdp = plan.mesh["fsdp"] * _least_factor(plan.mesh["data"])
        steps.append(f"config.mesh.fsdp={fsdp} or more (parameters and optimizer state are a large part)")
    if not steps:
        steps.append("more devices")
    return "; ".join(steps) + "; --search finds what fits"


def _least_factor(number: int) -> int:
    return next(factor for factor in range(2, number + 1) if number % factor == 0)


def search_table(result: SearchResult, batch_size: int, topology: Topology) -> str:
    """The results of a search as text."""
    if result.cheapest:
        first = f"batch {batch_size:,} fits with remat {result.cheapest.remat}, the least recomputation that does"
    else:
        first = f"batch {batch_size:,} does not fit with any rematerialization; use config.microbatches or more devices"
    lines = [first, "", "estimated from two and three layers of each tower:"]
    lines.append(
        f"{'remat':<8}{'peak HBM':>12}{'fits':>6}{'MFU':>6}{'pairs/s':>12}{'largest batch':>16}{'per device':>12}"
    )
    for remat, plan in result.estimates.items():
        mfu, images = plan.estimated_mfu(topology), plan.images_per_second(topology)
        figures = f"{mfu:>6.0%}{images:>12,.0f}" if mfu and images else f"{'':>18}"
        largest = result.largest[remat]
        lines.append(
            f"{remat:<8}{_size(plan.peak_hbm_bytes):>12}{'yes' if plan.fits else 'no':>6}{figures}"
            f"{largest:>16,}{_number(largest / len(topology.devices)):>12}"
        )
    if result.cheapest:
        lines += ["", "compiled whole:", table(result.cheapest, topology)]
    return "\n".join(lines)


def as_dict(plan: Plan, topology: Topology) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "fits": plan.fits,
        "topology": topology.name,
        "slices": topology.slices,
        "devices": len(topology.devices),
        "devices_per_chip": topology.chip.per_chip,
        "batch_size": plan.batch_size,
        "remat": plan.remat,
        "microbatches": plan.microbatches,
        "mesh": plan.mesh,
        "peak_hbm_bytes": plan.peak_hbm_bytes,
        "available_hbm_bytes": topology.chip.hbm_bytes,
        "peak_hbm_parts": plan.parts,
        "collectives": plan.collectives
        and {kind: {"count": item.count, "bytes": item.bytes} for kind, item in plan.collectives.items()},
        "estimated_cycles": plan.estimated_cycles,
        "kernel_cycles": plan.kernel_cycles,
        "cycles_by_kind": plan.cycles_by_kind,
        "products_ceiling_mfu": plan.ceiling(topology),
        "unknown_loops": plan.unknown_loops,
        "model_flops": plan.model_flops,
        "estimated_mfu": plan.estimated_mfu(topology),
        "images_per_second_bound": plan.images_per_second(topology),
        "compile_seconds": plan.compile_seconds,
    }


def search_dict(result: SearchResult, batch_size: int, topology: Topology) -> dict[str, Any]:
    """A search as JSON values."""
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "batch_size": batch_size,
        "cheapest": result.cheapest and as_dict(result.cheapest, topology),
        "extrapolated": {remat: as_dict(plan, topology) for remat, plan in result.estimates.items()},
        "largest_batch": result.largest,
    }


def _batch(plan: Plan, devices: int) -> str:
    parts = f", in {plan.microbatches} micro-batches" if plan.microbatches > 1 else ""
    return f"{plan.batch_size:,} pairs, {_number(plan.batch_size / devices)} per device; remat {plan.remat}{parts}"


def _size(size: float) -> str:
    if size >= GIB:
        return f"{size / GIB:,.2f} GiB"
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
