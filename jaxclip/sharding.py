"""The device mesh and the rules that say how every array lies on it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxclip.config import Config, MeshConfig
from jaxclip.errors import UserError

BATCH = PartitionSpec(("data", "fsdp"))
# Entries of an array whose update is computed sooner than its parts are collected.
SMALL = 1 << 16

# First match wins. Paths are those of the parameters; the optimizer's moments, the moving average and the memory have
# the same names behind a prefix, and so each rule is about the end of a path.
# Kernels of the blocks are stacked, [layers, inputs, outputs]; those of convolutions [height, width, inputs, outputs].
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/\w+_kernel$", PartitionSpec(None, "fsdp", None)),
    (r"(conv\d|downsample)_kernel$", PartitionSpec(None, None, None, "fsdp")),
    (r"(token_embedding|kernel)$", PartitionSpec("fsdp", None)),
    # Each device keeps its own rows: neither a push nor what is read of a bank moves all of them.
    (r"(queue|bank)$", BATCH),
    (r"(scale|bias|positions|class_embedding|segments|probe|mean|var|ns_coeffs)$", PartitionSpec()),
)


def create(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of axes `data` and `fsdp` over all devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // max(1, config.fsdp) if config.data == -1 else config.data
    if config.fsdp < 1 or data * config.fsdp != len(devices):
        raise UserError(
            f"config.mesh: data={config.data} x fsdp={config.fsdp} is not the {len(devices)} devices there are"
        )
    # jax.make_mesh makes Explicit axes unless told otherwise; the step is written for automatic partitioning.
    return Mesh(_arrange(devices, data, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def _arrange(devices: list[jax.Device], data: int, fsdp: int) -> np.ndarray:
    """Devices in a grid in which neighbors are near each other."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if data % slices:
            raise UserError(
                f"config.mesh: data={data} must be a multiple of the {slices} slices: fsdp stays within one"
            )
        # Slices are joined by the data center's network only: the slowest axis of the grid runs over them.
        return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp), (slices, 1), devices)
    if devices[0].device_kind == "TPU v4" and any(device.core_on_chip for device in devices):
        # jax arranges the chips of a v4 only if both cores are one device.
        return np.array(devices).reshape(data, fsdp)
    return mesh_utils.create_device_mesh((data, fsdp), devices)


def check_divides(config: Config, mesh: Mesh) -> None:
    """Checks that every device gets as many pairs, in every micro-batch.

    Raises:
      UserError: the batch does not divide.
    """
    unit = mesh.size * config.microbatches
    if config.batch_size % unit:
        near = max(1, round(config.batch_size / unit)) * unit
        what = f"{mesh.size} devices" + (f" x {config.microbatches} microbatches" if config.microbatches > 1 else "")
        raise UserError(f"config.batch_size={config.batch_size} must be a multiple of the {what}, such as {near}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, BATCH)


def from_host(tree: Any, placement: NamedSharding) -> Any:
    """Host arrays, the same ones in every process, as global ones; each process takes its part from its own copy.

    jax.device_put would first send all of them to every process to compare them, and refuse what is not a number.
    """
    take = lambda array: jax.make_array_from_callback(array.shape, placement, lambda place: array[place])  # noqa: E731
    return jax.tree.map(lambda array: take(np.asarray(array)), tree)


def constrain_batch(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A function that pins an activation's leading axis to the devices, for the edges of blocks.

    Without it the partitioner may follow the parameters' sharding instead: 8.1 GiB of temporaries against 1.0 for
    a ViT-B/16 (measured by the TPU compiler).
    """
    sharding = batch_sharding(mesh)
    return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of each array of a state, by the first of `RULES` that matches its path.

    An axis that the mesh does not divide is left whole. Scalars and random keys are on every device.

    Raises:
      ValueError: no rule matches a path.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        for pattern, spec in RULES:
            if re.search(pattern, name):
                axes = [axis if leaf.shape[dim] % _size(mesh, axis) == 0 else None for dim, axis in enumerate(spec)]
                return NamedSharding(mesh, PartitionSpec(*axes))
        raise ValueError(f"no sharding rule matches {name} {leaf.shape}")

    return jax.tree_util.tree_map_with_path(place, state)


def update_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of what is computed of each parameter once per step: gradients, moments, the moving average.

    Over all devices, and not only those of `fsdp`, so that none computes an update that another does as well (ZeRO-1,
    Rajbhandari et al. 2020, section 5.1). Small arrays, and those of which no axis divides among the devices, are
    placed as by `RULES`.

    Args:
      mesh: the devices.
      tree: of parameters, or of what has their names behind a prefix.
    """

    def place(leaf: Any, own: NamedSharding) -> NamedSharding:
        axes = list(own.spec) + [None] * (leaf.ndim - len(own.spec))
        if leaf.size < SMALL:
            return own
        # The axis that `fsdp` has, or the longest.
        for dim in sorted(range(leaf.ndim), key=lambda dim: (axes[dim] is None, -leaf.shape[dim])):
            if leaf.shape[dim] % mesh.size == 0 and axes[dim] in (None, "fsdp", *BATCH):
                spec = [None] * leaf.ndim
                spec[dim] = BATCH[0]
                return NamedSharding(mesh, PartitionSpec(*spec))
        return own

    return jax.tree.map(place, tree, state_shardings(mesh, tree))


def _size(mesh: Mesh, axis: str | tuple[str, ...] | None) -> int:
    """In how many parts an axis of a mesh, or several together, divide an array."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    return math.prod(mesh.shape[name] for name in names)


def placed(mesh: Mesh, params: Any, stats: Any, dtype: Any = "float32") -> tuple[Any, Any]:
    """Abstract parameters and batch statistics with their shardings.

    Args:
      mesh: the devices.
      params, stats: trees of shapes.
      dtype: of the parameters; scalars and batch statistics are float32 whatever it is.
    """

    def place(tree: Any, dtype: Any) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, dtype if leaf.ndim else "float32", sharding=sharding
            ),
            tree,
            state_shardings(mesh, tree),
        )

    return place(params, dtype), place(stats, "float32")
