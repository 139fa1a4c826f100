"""The one jitted training step, built from a method, an optimizer and a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import mesh as meshes
from jaxclip.caching import check_separable, in_parts
from jaxclip.methods import Method, bind, init_params


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state", "key"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step carries to the next, and everything a checkpoint holds.

    Attributes:
      step: int32, steps done.
      params: nested dict of float32 arrays.
      opt_state: the optimizer's.
      key: the run's random key; each step folds its number in.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def compute_dtype(precision: str, platform: str) -> Any:
    """What the towers compute in: `auto` is bfloat16 on TPU and GPU, float32 on CPU (where bfloat16 is no faster)."""
    if precision == "auto":
        precision = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(precision)


class Step:
    """Functions jitted for one method, optimizer and mesh.

    Attributes:
      abstract_state: the state's shapes, dtypes and shardings.
      init: (seed) -> a sharded TrainState.
      train: (state, batch) -> (state, metrics). The state's buffers are donated. Metrics are float32 scalars: `loss`,
        `grad_norm`, `param_norm` and the method's own.
      model: (params) -> the method's model over them.
      validate: (params, batch) -> metrics without an update or randomness.

    Raises:
      UserError: `microbatches` is more than 1 and the method's model has batch statistics.
    """

    def __init__(
        self,
        method: Method,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        precision: str = "auto",
        microbatches: int = 1,
    ):
        if microbatches > 1:
            check_separable(method)
        self.microbatches = microbatches
        self.method = method
        self.optimizer = optimizer
        self.mesh = mesh
        self.dtype = compute_dtype(precision, mesh.devices.flat[0].platform)
        self.model = bind(method)
        abstract = jax.eval_shape(self._init, jax.random.key(0))
        shardings = meshes.state_shardings(mesh, abstract)
        self.abstract_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        replicated = NamedSharding(mesh, PartitionSpec())
        batch = meshes.batch_sharding(mesh)
        init = jax.jit(self._init, out_shardings=shardings)
        self.init = lambda seed: init(jax.random.key(seed))
        self.train = jax.jit(
            self._train, in_shardings=(shardings, batch), out_shardings=(shardings, replicated), donate_argnums=0
        )
        self.validate = jax.jit(self._validate, in_shardings=(shardings.params, batch), out_shardings=replicated)

    def _init(self, key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        params = init_params(self.method, init_key)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), run_key)

    def _train(self, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = self.method.clamp(optax.apply_updates(state.params, updates))
        metrics |= {"loss": loss, "grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(state.params)}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def _validate(self, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        loss, metrics = self.loss(params, batch, None)
        return metrics | {"loss": loss}

    def loss(self, params: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, dict]:
        rows = len(next(iter(batch.values())))
        # One key per record: what is random about it does not depend on the micro-batch it falls into.
        keys = None if key is None else jax.random.split(key, rows)
        constrain = meshes.constrain_batch(self.mesh)

        def embed(part: tuple[Mapping[str, jax.Array], jax.Array | None]) -> dict[str, jax.Array]:
            records, keys = part
            return self.method.embed(self.model(params), records, keys=keys, dtype=self.dtype, constrain=constrain)

        # A validation batch may be smaller than a training one: in as many parts then as divide it.
        parts = max(n for n in range(1, self.microbatches + 1) if rows % (n * self.mesh.size) == 0 or n == 1)
        embedded = embed((batch, keys)) if parts == 1 else in_parts(embed, (batch, keys), parts, self.mesh)
        return self.method.loss(self.model(params), jax.tree.map(constrain, embedded), mesh=self.mesh)
