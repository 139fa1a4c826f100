"""TPU generations, as far as a plan needs them, and topologies of them that need not be there."""

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
    """What JAX sees as one device.

    Attributes:
      name: the generation.
      peak_flops: bfloat16, per second (Google's Cloud TPU documentation, by the devices of a chip).
      flops_per_cycle: 2 x 128 x 128 or 2 x 256 x 256 per matrix unit and cycle. The clock follows: 1.05 GHz of v4
        (Jouppi et al. 2023, table 4), 1.5 of v5e, 1.75 of v5p and v6e, 2.2 of tpu7x.
      hbm_bytes: what the compiler says a program may use, a little less than the chip has.
      per_chip: devices that make up a chip.
    """

    name: str
    peak_flops: float
    flops_per_cycle: int
    hbm_bytes: int
    per_chip: int = 1

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.peak_flops / self.flops_per_cycle


def _chip(name: str, teraflops: float, matrix_units: int, width: int, gib: float, per_chip: int = 1) -> Chip:
    return Chip(name, teraflops * 1e12, matrix_units * 2 * width**2, int(gib * GIB), per_chip)


# By the name in a topology; v4 stands for a chip whose two cores work as one device ("megacore", what JAX gets on
# Cloud TPU VMs). The HBM is what libtpu states as available when a program is too large.
CHIPS = {
    "v4": _chip("v4", 275, 8, 128, 30.75),
    "v5e": _chip("v5e", 197, 4, 128, 15.75),
    "v5p": _chip("v5p", 459, 8, 128, 95.73),
    "v6e": _chip("v6e", 918, 4, 256, 31.24),
    "tpu7x": _chip("tpu7x", 2307 / 2, 4, 256, 94.74, per_chip=2),
}
V4_CORES = _chip("v4", 137.5, 4, 128, 15.25, per_chip=2)


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
    """Describes TPUs to the compiler.

    Args:
      name: such as v5e:16x16 or v5p:4x4x8, the generation and the chips along each dimension.
      slices: how many such slices, joined by the data centre's network.
      megacore: of v4: use both cores of a chip as one device.

    Raises:
      UserError: libtpu is not installed, or there is no such topology.
    """
    generation, _, shape = name.partition(":")
    # The compiler ends the process over a wrong number of dimensions.
    dimensions = 2 if generation in ("v5e", "v6e") else 3
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        raise UserError(
            f"--topology={name}: give a generation ({', '.join(CHIPS)}) and the chips along each dimension, two of v5e "
            f"and v6e, three of the others, such as v5e:16x16 or v5p:4x4x8"
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    if not megacore and generation != "v4":
        raise UserError(f"--nomegacore: only a v4 chip can be used either way, not {generation}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the TPU's compiler, is not installed: pip install 'jaxclip[plan]'")
    from jax.experimental import topologies

    more: dict[str, Any] = {}
    if generation == "v4" and megacore:
        more["chip_config_name"] = "megacore"
    if slices > 1:
        more["num_slices"] = slices
    if set(shape.split("x")) == {"1"}:
        more["chips_per_host_bounds"] = (1, 1, 1)
    # The library looks for a TPU's surroundings and says on standard error that it finds none.
    with quiet_stderr():
        try:
            description = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
        except jax.errors.JaxRuntimeError as error:
            # Raised outside, where what the library has said on standard error is dropped.
            refusal: Exception | None = error
        else:
            refusal = None
    if refusal is not None:
        raise UserError(f"--topology={name}: {' '.join(str(refusal).split())}")
    chip = CHIPS[generation] if megacore else V4_CORES
    return Topology(name, chip, slices, list(description.devices))
