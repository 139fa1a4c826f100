"""TPU generations with the specifications a plan needs, and compile-only topologies."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from typing import Any

import jax

from jaxclip.errors import UserError
from jaxclip.quiet import quiet_stderr

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX sees it.

    Attributes:
      name: the generation.
      peak_flops: bfloat16 operations per second (Google's Cloud TPU documentation, divided by devices per chip).
      flops_per_cycle: 2 x 128 x 128 or 2 x 256 x 256 per matrix unit and cycle. This gives clocks of 1.05 GHz for v4
        (Jouppi et al. 2023, table 4), 1.5 for v5e, 1.75 for v5p and v6e, and 2.2 for tpu7x.
      hbm_bytes: the memory that the compiler allows a program, a little less than the chip has.
      per_chip: the number of devices per chip.
      cores: of a device; a kernel's rows are divided between two.
    """

    name: str
    peak_flops: float
    flops_per_cycle: int
    hbm_bytes: int
    per_chip: int = 1
    cores: int = 1

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.peak_flops / self.flops_per_cycle


def _chip(
    name: str, *, teraflops: float, matrix_units: int, width: int, gib: float, per_chip: int = 1, cores: int = 1
) -> Chip:
    return Chip(
        name=name,
        peak_flops=teraflops * 1e12,
        flops_per_cycle=matrix_units * 2 * width**2,
        hbm_bytes=int(gib * GIB),
        per_chip=per_chip,
        cores=cores,
    )


# By the name in a topology. On v4, the two cores of a chip are one device ("megacore", the default on Cloud TPU VMs).
# The HBM is what libtpu reports as available for a program that is too large.
CHIPS = {
    "v4": _chip("v4", teraflops=275, matrix_units=8, width=128, gib=30.75, cores=2),
    "v5e": _chip("v5e", teraflops=197, matrix_units=4, width=128, gib=15.75),
    "v5p": _chip("v5p", teraflops=459, matrix_units=8, width=128, gib=95.73, cores=2),
    "v6e": _chip("v6e", teraflops=918, matrix_units=4, width=256, gib=31.24),
    "tpu7x": _chip("tpu7x", teraflops=2307 / 2, matrix_units=4, width=256, gib=94.74, per_chip=2),
}
V4_CORES = _chip("v4", teraflops=137.5, matrix_units=4, width=128, gib=15.25, per_chip=2)


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of one or several slices."""

    name: str
    chip: Chip
    slices: int
    devices: list[Any]

    def __str__(self) -> str:
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        chips = len(self.devices) // self.chip.per_chip
        both = f", {chips:,} chips: each is two devices" if self.chip.per_chip == 2 else ""
        devices = "1 device" if len(self.devices) == 1 else f"{len(self.devices):,} devices"
        return f"{slices}{self.name} ({devices}{both})"


def topology(name: str, slices: int = 1, megacore: bool = True) -> Topology:
    """The devices of a TPU topology, for compilation only.

    Args:
      name: the generation and the number of chips along each dimension, such as v5e:16x16 or v5p:4x4x8.
      slices: number of such slices, connected by the data center's network.
      megacore: on v4, use both cores of a chip as one device.

    Raises:
      UserError: libtpu is not installed, or the topology does not exist.
    """
    generation, _, shape = name.partition(":")
    # A wrong number of dimensions makes the compiler abort the process.
    dimensions = 2 if generation in ("v5e", "v6e") else 3
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        raise UserError(
            f"--topology={name}: give a generation ({', '.join(CHIPS)}) and the number of chips along each dimension, "
            f"two dimensions for v5e and v6e, three for the others, such as v5e:16x16 or v5p:4x4x8"
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    if not megacore and generation != "v4":
        raise UserError(f"--nomegacore: only for v4, not for {generation}; remove the flag")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the TPU's compiler, is not installed: pip install -e '.[plan]', in the clone")
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if generation == "v4" and megacore:
        options["chip_config_name"] = "megacore"
    if slices > 1:
        options["num_slices"] = slices
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    # libtpu looks for TPU metadata and reports on standard error that there is none.
    with quiet_stderr():
        try:
            description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        except jax.errors.JaxRuntimeError as error:
            # Raised below: raised here, it would make quiet_stderr print what libtpu wrote to standard error.
            failure: Exception | None = error
        else:
            failure = None
    if failure is not None:
        raise UserError(f"--topology={name}: {' '.join(str(failure).split())}")
    chip = CHIPS[generation] if megacore else V4_CORES
    return Topology(name, chip, slices, list(description.devices))
