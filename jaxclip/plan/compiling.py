"""Compiles the trainer's own step for a topology and reads off what there is to know."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import time
from typing import Any

import jax

from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.plan.chips import GIB, Topology
from jaxclip.plan.flops import model_flops
from jaxclip.plan.hlo import Program
from jaxclip.step import Step


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in a step.

    Attributes:
      count: how often a step runs one.
      bytes: of their results on one device.
    """

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What compiling a step says about it. Bytes are per device; None is what a program that does not fit leaves open.

    Attributes:
      fits: whether the compiler made a program.
      batch_size: pairs per step, over all devices.
      remat: what the towers recompute.
      microbatches: parts the batch goes through the towers in.
      mesh: devices along each axis.
      parts: bytes of the parameters, the optimizer's state and the batch, and of `temporaries`: activations,
        gradients and the compiler's own copies at the moment when most is in use.
      peak_hbm_bytes: their sum; of a program that does not fit the least that it would need.
      collectives: by kind.
      estimated_cycles: the compiler's estimate, loops multiplied out, communication left out.
      unknown_loops: how many loops were counted as one turn because their length could not be read.
      model_flops: of the whole step on all devices; see `flops.model_flops`.
      compile_seconds: wall clock.
    """

    fits: bool
    batch_size: int
    remat: str
    microbatches: int
    mesh: dict[str, int]
    parts: dict[str, int]
    peak_hbm_bytes: int
    collectives: dict[str, Traffic] | None
    estimated_cycles: int | None
    unknown_loops: int
    model_flops: float
    compile_seconds: float

    def estimated_mfu(self, topology: Topology) -> float | None:
        """The share of the peak that the model's operations would be of, at the estimated cycles."""
        seconds = self.seconds(topology)
        return seconds and self.model_flops / (seconds * len(topology.devices) * topology.chip.peak_flops)

    def images_per_second(self, topology: Topology) -> float | None:
        """Pairs per second at the estimated cycles."""
        seconds = self.seconds(topology)
        return seconds and self.batch_size / seconds

    def seconds(self, topology: Topology) -> float | None:
        """A step's, at the chip's clock, if communication and input cost nothing."""
        return self.estimated_cycles and self.estimated_cycles / topology.chip.clock


def mesh_for(config: Config, topology: Topology) -> jax.sharding.Mesh:
    """The mesh of a config on a topology.

    Raises:
      UserError: the mesh does not suit the devices, or the batch does not divide among them.
    """
    mesh = sharding.create(config.mesh, topology.devices)
    sharding.check_divides(config, mesh)
    return mesh


def compile_step(config: Config, topology: Topology) -> Plan:
    """Compiles the training step of a config for devices that need not be there.

    Raises:
      UserError: the config does not suit the devices, or the compiler refuses it for another reason than memory.
    """
    mesh = mesh_for(config, topology)
    method = methods.from_config(config.method)
    # The length of the schedule is a constant in the program, of which nothing here depends.
    tx = optimizer.create(config.optimizer, 100_000)
    step = Step(method, tx, mesh, config.precision, config.microbatches, config.optimizer.frozen)
    rows = sharding.batch_sharding(mesh)
    arrays = shapes(method.inputs(), config.batch_size)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), arrays)
    state = step.abstract_state
    parts = {
        "parameters": _bytes_on_one(state.variables),
        "optimizer state": _bytes_on_one(state.opt_state),
        "memory": _bytes_on_one(state.memory),
        "averaged parameters": _bytes_on_one(state.average),
        "batch": _bytes_on_one(batch),
    }
    parts = {name: size for name, size in parts.items() if size or name not in ("memory", "averaged parameters")}
    asked = config.batch_size, remat_of(config), config.microbatches, dict(mesh.shape)
    flops = model_flops(methods.from_config(with_remat(config, "none").method), step, arrays)
    lowered = step.train.lower(state, batch)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        parts["temporaries"] = _needed(str(error))
        seconds = time.perf_counter() - began
        return Plan(False, *asked, parts, sum(parts.values()), None, None, 0, flops, seconds)
    seconds = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None
    peak = memory.peak_memory_in_bytes
    parts["temporaries"] = peak - sum(parts.values())
    program = Program(text)
    counts, sizes = collections.Counter[str](), collections.Counter[str]()
    for found in program.collectives():
        counts[found.kind] += found.times
        sizes[found.kind] += int(found.times * found.bytes)
    cycles = program.cycles()
    return Plan(
        True,
        *asked,
        parts,
        peak,
        {kind: Traffic(counts[kind], sizes[kind]) for kind in sorted(sizes, key=lambda kind: -sizes[kind])},
        cycles,
        len(program.unknown_loops),
        flops,
        seconds,
    )


def remat_of(config: Config) -> str:
    """What the towers of a config recompute: one word where all do alike."""
    words = _remats(config)
    if len(set(words.values())) > 1:
        return ", ".join(f"{tower} {word}" for tower, word in words.items())
    return next(iter(words.values()), "none")


def with_remat(config: Config, remat: str) -> Config:
    """The config with all towers recomputing alike."""
    towers = {tower: dict(config.method[tower]) | {"remat": remat} for tower in _remats(config)}
    return dataclasses.replace(config, method=dict(config.method) | towers)


def _remats(config: Config) -> dict[str, str]:
    """By name, what each tower of the method recomputes."""
    method = methods.from_config(config.method)
    parts = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {name: part.remat for name, part in parts.items() if hasattr(part, "remat")}


def _bytes_on_one(tree: Any) -> int:
    """Bytes of a pytree of shapes on one device. A random key's are of no account."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _needed(message: str) -> int:
    """The bytes of temporaries that a compiler's refusal says are too many."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    if found is None:
        raise UserError(f"the compiler refuses the program: {message.splitlines()[0]}")
    return int(float(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found[2]])
