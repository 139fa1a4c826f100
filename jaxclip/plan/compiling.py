"""Compilation of the training step for a TPU topology, and the resulting memory, traffic and cycle counts."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax

from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config
from jaxclip.device_augmentation import augmentation
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.plan.chips import GIB, Topology
from jaxclip.plan.flops import model_flops
from jaxclip.plan.hlo import Program
from jaxclip.plan.kernels import cycles
from jaxclip.plan.kinds import by_kind
from jaxclip.step import Step, TrainState


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in a step.

    Attributes:
      count: executions per step.
      bytes: total size of their results on one device.
    """

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The results of compiling a step. Bytes are per device. Values are None if unknown because it does not fit.

    Attributes:
      fits: whether the program fits into the device's memory.
      batch_size: pairs per step, over all devices.
      remat: the rematerialization of the towers.
      microbatches: the number of micro-batches.
      mesh: devices along each axis.
      parts: bytes of the parameters, the optimizer state, the batch, and `temporaries`: activations, gradients and the
        compiler's own copies at the peak.
      peak_hbm_bytes: the sum of the parts; for a program that does not fit, the minimum that it would need.
      collectives: by kind.
      estimated_cycles: the compiler's estimate and `kernel_cycles`, with loops multiplied out, without communication.
      kernel_cycles: of the kernels, which the compiler's estimate leaves out; see `plan.kernels`.
      cycles_by_kind: of the estimated cycles, by what they are spent on; see `plan.kinds`.
      unknown_loops: the number of loops that were counted as one iteration, because their length is unknown.
      model_flops: of the whole step on all devices; see `flops.model_flops`.
      compile_seconds: wall-clock time.
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
    kernel_cycles: int | None
    cycles_by_kind: dict[str, int] | None
    unknown_loops: int
    model_flops: float
    compile_seconds: float

    def estimated_mfu(self, topology: Topology) -> float | None:
        """The model's operations as a fraction of the peak, at the estimated cycles."""
        seconds = self.seconds(topology)
        return seconds and self.model_flops / (seconds * len(topology.devices) * topology.chip.peak_flops)

    def ceiling(self, topology: Topology) -> float | None:
        """The MFU of a step that consisted of nothing but the program's own matrix products, those of attention not
        counted; None if it has none.
        """
        products = (self.cycles_by_kind or {}).get("products")
        flops = len(topology.devices) * topology.chip.flops_per_cycle
        return self.model_flops / (products * flops) if products else None

    def images_per_second(self, topology: Topology) -> float | None:
        """Pairs per second at the estimated cycles."""
        seconds = self.seconds(topology)
        return seconds and self.batch_size / seconds

    def seconds(self, topology: Topology) -> float | None:
        """The duration of a step at the chip's clock, if communication and input took no time."""
        return self.estimated_cycles and self.estimated_cycles / topology.chip.clock


def mesh_for(config: Config, topology: Topology) -> jax.sharding.Mesh:
    """The mesh of a config on a topology.

    Raises:
      UserError: the mesh does not match the devices, or the batch does not divide among them.
    """
    mesh = sharding.create(config.mesh, topology.devices)
    sharding.check_divides(config, mesh)
    return mesh


def compile_step(config: Config, topology: Topology) -> Plan:
    """Compiles a config's training step for devices that need not exist.

    Raises:
      UserError: the config does not match the devices, or the compiler fails for a reason other than memory.
    """
    mesh = mesh_for(config, topology)
    method = methods.from_config(config.method)
    # The length of the schedule is a constant in the program, and does not affect the results.
    tx = optimizer.create(config.optimizer, 100_000)
    step = Step(
        method,
        tx,
        mesh,
        precision=config.precision,
        attention=config.attention,
        microbatches=config.microbatches,
        groups=config.optimizer.groups,
        average_decay=config.optimizer.average_decay,
        augment=augmentation(method.inputs(), config.data),
    )
    rows = sharding.batch_sharding(mesh)
    arrays = shapes(method.inputs(), config.batch_size)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), arrays)
    state = step.abstract_state
    parts = stored_bytes(state, batch)
    make_plan = functools.partial(
        Plan,
        batch_size=config.batch_size,
        remat=remat_of(config),
        microbatches=config.microbatches,
        mesh=dict(mesh.shape),
        model_flops=model_flops(methods.from_config(with_remat(config, "none").method), step, arrays),
    )
    lowered = step.train.lower(state, batch)
    start_time = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        parts["temporaries"] = _needed(str(error))
        return make_plan(
            fits=False,
            parts=parts,
            peak_hbm_bytes=sum(parts.values()),
            collectives=None,
            estimated_cycles=None,
            kernel_cycles=None,
            cycles_by_kind=None,
            unknown_loops=0,
            compile_seconds=time.perf_counter() - start_time,
        )
    seconds = time.perf_counter() - start_time
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None
    peak = memory.peak_memory_in_bytes
    parts["temporaries"] = peak - sum(parts.values())
    program = Program(text)
    counts, sizes = collections.Counter[str](), collections.Counter[str]()
    for collective in program.collectives():
        counts[collective.kind] += collective.times
        sizes[collective.kind] += int(collective.times * collective.bytes)
    kernels = sum(times * cycles(call, topology.chip) for call, times in program.kernels())
    return make_plan(
        fits=True,
        parts=parts,
        peak_hbm_bytes=peak,
        collectives={kind: Traffic(counts[kind], sizes[kind]) for kind in sorted(sizes, key=lambda kind: -sizes[kind])},
        estimated_cycles=program.cycles() + kernels,
        kernel_cycles=kernels,
        cycles_by_kind=by_kind(program, kernels),
        unknown_loops=len(program.unknown_loops),
        compile_seconds=seconds,
    )


def stored_bytes(state: TrainState, batch: Any) -> dict[str, int]:
    """What each device holds of a training state and a batch before a step, in bytes by kind.

    Args:
      state, batch: arrays or `jax.ShapeDtypeStruct`s, with their shardings.
    """
    parts = {
        "parameters": _bytes_on_one(state.variables),
        "optimizer state": _bytes_on_one(state.opt_state),
        "memory": _bytes_on_one(state.memory),
        "averaged parameters": _bytes_on_one(state.average),
        "batch": _bytes_on_one(batch),
    }
    # Most methods have neither.
    return {name: size for name, size in parts.items() if size or name not in ("memory", "averaged parameters")}


def remat_of(config: Config) -> str:
    """The rematerialization of a config's towers: one word if it is the same for all."""
    words = _remats(config)
    if len(set(words.values())) > 1:
        return ", ".join(f"{tower} {word}" for tower, word in words.items())
    return next(iter(words.values()), "none")


def with_remat(config: Config, remat: str) -> Config:
    """The config with the same rematerialization for all towers."""
    towers = {tower: dict(config.method[tower]) | {"remat": remat} for tower in _remats(config)}
    return dataclasses.replace(config, method=dict(config.method) | towers)


def _remats(config: Config) -> dict[str, str]:
    """The rematerialization of each of the method's towers, by name."""
    method = methods.from_config(config.method)
    parts = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {name: part.remat for name, part in parts.items() if hasattr(part, "remat")}


def _bytes_on_one(tree: Any) -> int:
    """Bytes of a pytree of shapes on one device, without random keys."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _needed(message: str) -> int:
    """The bytes of temporaries in the compiler's message that a program does not fit."""
    match = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    if match is None:
        raise UserError(f"the compiler rejected the program: {message.splitlines()[0]}")
    return int(float(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[match[2]])
