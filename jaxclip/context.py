"""Gradient caching: a batch through the towers in parts, with the loss and the gradient of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import sharding
from jaxclip.config import GroupConfig
from jaxclip.errors import UserError
from jaxclip.methods import Method
from jaxclip.optimizer import is_frozen

T = TypeVar("T", bound=Any)


def in_parts(function: Callable[[Any], T], batch: Any, parts: int, mesh: Mesh) -> T:
    """function(batch), computed for one part of the rows after the other and differentiated likewise.

    Gradient caching (Gao et al. 2021; BASIC, Pham et al. 2021, section 4) is rematerialisation over parts: the forward
    pass keeps nothing of a part but its result, and the backward pass, which begins when the loss of all results is
    known, computes each part again. The parts share no rows and no randomness, so the gradient is that of the whole.

    Args:
      function: of a pytree of [rows, ...] arrays; gives a pytree of [rows, ...] arrays, each row from its own.
      batch: a pytree of arrays, their rows over all devices of `mesh`.
      parts: how many; times the number of devices, divides the rows.
      mesh: the devices. Each keeps its own rows: a part has some of every device's.
    """
    spec = PartitionSpec(None, *sharding.BATCH)

    def divide(x: jax.Array) -> jax.Array:
        by_device = x.reshape(mesh.size, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        by_device = jax.lax.with_sharding_constraint(by_device, NamedSharding(mesh, spec))
        return by_device.reshape(parts, -1, *x.shape[1:])

    def unite(x: jax.Array) -> jax.Array:
        by_device = x.reshape(parts, mesh.size, -1, *x.shape[2:])
        by_device = jax.lax.with_sharding_constraint(by_device, NamedSharding(mesh, spec))
        return by_device.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    # The loop already keeps the compiler from merging the second computation with the first.
    once_more = jax.checkpoint(function, prevent_cse=False)
    return jax.tree.map(unite, jax.lax.map(once_more, jax.tree.map(divide, batch)))


def check_separable(method: Method, groups: Sequence[GroupConfig] = ()) -> None:
    """Checks that a record's embedding does not depend on the other records.

    Args:
      method: the run's.
      groups: the recipe's `optimizer.groups`: frozen layers normalise by their running averages.

    Raises:
      UserError: the model has batch statistics; the message names the first.
    """
    model = nnx.eval_shape(lambda: method.init(nnx.Rngs(params=0)))
    for path, _ in nnx.to_flat_state(nnx.state(model, nnx.BatchStat)):
        name = "/".join(map(str, path))
        if is_frozen(name.rpartition("/")[0] + "/scale", groups):
            continue
        raise UserError(
            f"config.microbatches: the model has batch statistics ({name}), which would be those of a micro-batch and "
            f"not of the batch; set config.microbatches=1, or use towers without batch normalisation"
        )
