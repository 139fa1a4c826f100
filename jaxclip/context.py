"""The context of a method's functions: model, memory, devices, precision, randomness, and gradient caching."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import sharding
from jaxclip.config import AttentionForm
from jaxclip.errors import UserError

T = TypeVar("T", bound=Any)

# Folded into the keys of a second tower of the same stage: no tower has a block of this number.
SECOND_TOWER = 1 << 16


@dataclasses.dataclass(frozen=True)
class Context:
    """What a step, or an evaluation, passes to a method and its towers.

    Attributes:
      model: the method's model.
      memory: the module that `Method.memory` made, with the variables of the training state. A method assigns to it in
        training; what it assigns in evaluation is discarded.
      mesh: the devices; None for one device, without sharding constraints.
      dtype: what towers compute in.
      step: int32, steps done; None in evaluation.
      key: random key of the step; None in evaluation.
      keys: [rows] random keys, one per record, inside `each`; None in evaluation.
      microbatches: parts that `each` computes one after the other.
      attention: see `config.Config`.
      own_device: one of the devices where `mesh` is None, in what each of them computes for its own rows.
    """

    model: Any = None
    memory: Any = None
    mesh: Mesh | None = None
    dtype: Any = jnp.float32
    step: jax.Array | None = None
    key: jax.Array | None = None
    keys: jax.Array | None = None
    microbatches: int = 1
    attention: AttentionForm = "auto"
    own_device: Any = None

    @property
    def device(self) -> Any:
        """One of the devices, for what depends on their kind; None if neither mesh nor `own_device` is given."""
        return self.own_device if self.mesh is None else self.mesh.devices.flat[0]

    @property
    def on_tpu(self) -> bool:
        """Whether the devices are TPUs."""
        return self.device is not None and self.device.platform == "tpu"

    @property
    def on_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return self.device is not None and self.device.platform == "gpu"

    @property
    def train(self) -> bool:
        """Whether this is training: dropout, batch statistics of the batch, augmentation."""
        return self.key is not None

    def constrain(self, x: jax.Array) -> jax.Array:
        """Pins the leading axis of an activation to the devices, for the edges of blocks."""
        return x if self.mesh is None else sharding.constrain_batch(self.mesh)(x)

    def fold(self, number: int) -> Context:
        """The context with other per-record keys, for a second use of randomness in the same stage."""
        if self.keys is None:
            return self
        return dataclasses.replace(self, keys=jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys))

    def each(self, function: Callable[[Any, Any, Context], T], rows: Any, salt: int = 0) -> T:
        """function(model, rows, ctx) for rows that are computed independently of each other.

        With `microbatches` above 1 the rows are computed in parts, one after the other, and the backward pass computes
        each part again: gradient caching (Gao et al. 2021). A method may call it any number of times; the loss between
        the calls sees the whole batch.

        Args:
          function: gives a pytree of [rows, ...] arrays, each row from its own. It must use the model and the context
            that it is given.
          rows: a pytree of [rows, ...] arrays.
          salt: tells apart the randomness of several calls over the same records.

        Returns:
          What `function` gives for all rows, in their order.

        Raises:
          UserError: in several parts, the function computes statistics of its batch.
        """
        count = len(jax.tree.leaves(rows)[0])
        # One key per record: what is random about it does not depend on the micro-batch it falls into.
        key = self.key if self.key is None or not salt else jax.random.fold_in(self.key, salt)
        keys = None if key is None else jax.random.split(key, count)
        devices = 1 if self.mesh is None else self.mesh.size
        # A validation batch may be smaller than a training batch; then it has as many parts as divide it.
        parts = max(n for n in range(1, self.microbatches + 1) if count % (n * devices) == 0 or n == 1)
        if parts == 1:
            result = function(self.model, rows, dataclasses.replace(self, keys=keys))
        else:
            # Each part has a model of its own: one that lives outside a loop must not be changed inside.
            graph, state = nnx.split((self.model, self.memory))

            def part(state: Any, given: tuple[Any, jax.Array | None], mesh: Mesh | None) -> T:
                part_rows, part_keys = given
                model, memory = nnx.merge(graph, state, copy=True)
                own = {"model": model, "memory": memory, "keys": part_keys, "mesh": mesh, "own_device": self.device}
                before = _batch_statistics(model)
                values = function(model, part_rows, dataclasses.replace(self, **own))
                _check_unchanged(before, _batch_statistics(model))
                return values

            result = in_parts(part, state, (rows, keys), parts, self.mesh)
        return jax.tree.map(self.constrain, result)


def _batch_statistics(model: nnx.Module) -> dict[str, Any]:
    """The running averages that training replaces, by path; those of frozen layers are locked and stay."""
    return {
        "/".join(map(str, (*path, name))): variable[...]
        for path, module in nnx.iter_modules(model)
        if not getattr(module, "locked", False)
        for name, variable in vars(module).items()
        if isinstance(variable, nnx.BatchStat)
    }


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises UserError if batch statistics were replaced."""
    for path, value in after.items():
        if value is not before[path]:
            raise UserError(
                f"config.microbatches: the model has batch statistics ({path}), which would be those of a micro-batch "
                f"and not of the batch; set config.microbatches=1, or use towers without batch normalization"
            )


def in_parts(
    function: Callable[[Any, Any, Mesh | None], T], state: Any, batch: Any, parts: int, mesh: Mesh | None
) -> T:
    """function(state, batch, mesh), computed for one part of the rows after the other and differentiated likewise.

    Gradient caching (Gao et al. 2021; BASIC, Pham et al. 2021, section 4) is rematerialization over parts: the forward
    pass keeps nothing of a part but its result, and the backward pass, which begins when the loss of all results is
    known, computes each part again. The parts share no rows and no randomness, so the gradient is that of the whole.

    Args:
      function: of the state, some rows of the batch, and the devices that they are on; gives a pytree of [rows, ...]
        arrays, each row from its own. Without parameters sharded by `fsdp`, each device computes its own rows alone,
        and the mesh is None: the sum of gradients over devices is then taken once, and not once per part.
      state: a pytree of what all rows share, such as parameters.
      batch: a pytree of arrays, their rows over all devices of `mesh`.
      parts: how many; times the number of devices, divides the rows.
      mesh: the devices. Each keeps its own rows: a part has some of every device's. None for one device.
    """
    if mesh is None or mesh.size == 1 or mesh.shape["fsdp"] > 1:
        return _one_after_the_other(lambda state, rows: function(state, rows, mesh), state, batch, parts, mesh)

    def own(state: Any, rows: Any) -> T:
        return _one_after_the_other(lambda state, rows: function(state, rows, None), state, rows, parts, None)

    specs = (PartitionSpec(), sharding.BATCH)
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH, check_vma=False)(state, batch)


def _one_after_the_other(function: Callable[[Any, Any], T], state: Any, batch: Any, parts: int, mesh: Mesh | None) -> T:
    devices = 1 if mesh is None else mesh.size
    spec = PartitionSpec(None, *sharding.BATCH)

    def pinned(x: jax.Array) -> jax.Array:
        return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def divide(x: jax.Array) -> jax.Array:
        by_device = pinned(x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1))
        return by_device.reshape(parts, -1, *x.shape[1:])

    def unite(x: jax.Array) -> jax.Array:
        by_device = pinned(x.reshape(parts, devices, -1, *x.shape[2:]))
        return by_device.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    # The loop already keeps the compiler from merging the second computation with the first.
    once_more = jax.checkpoint(function, prevent_cse=False)
    return jax.tree.map(unite, jax.lax.map(functools.partial(once_more, state), jax.tree.map(divide, batch)))
