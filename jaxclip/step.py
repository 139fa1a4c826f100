"""The one jitted training step, built from a method, an optimizer and a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import sharding
from jaxclip.config import GroupConfig
from jaxclip.context import check_separable, in_parts
from jaxclip.methods import Method, batch_stats, bind, init_variables, joined
from jaxclip.optimizer import frozen_paths, is_frozen
from jaxclip.towers.batch_norm import BatchNorm


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "stats", "opt_state", "key"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step carries to the next, and everything a checkpoint holds.

    Attributes:
      step: int32, steps done.
      params: nested dict of float32 arrays.
      stats: nested dict of the running averages that batch normalisation keeps; empty for most models.
      opt_state: the optimizer's.
      key: the run's random key; each step folds its number in.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """All that the model computes with."""
        return joined(self.params, self.stats)


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
      model: (variables) -> the method's model over them.
      validate: (variables, batch) -> metrics without an update or randomness.

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
        groups: Sequence[GroupConfig] = (),
    ):
        if microbatches > 1:
            check_separable(method, groups)
        self.microbatches = microbatches
        self.groups = groups
        self.method = method
        self.optimizer = optimizer
        self.mesh = mesh
        self.dtype = compute_dtype(precision, mesh.devices.flat[0].platform)
        self.model = bind(method)
        abstract = jax.eval_shape(self._init, jax.random.key(0))
        shardings = sharding.state_shardings(mesh, abstract)
        self.abstract_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        replicated = NamedSharding(mesh, PartitionSpec())
        batch = sharding.batch_sharding(mesh)
        init = jax.jit(self._init, out_shardings=shardings)
        self.init = lambda seed: init(jax.random.key(seed))
        self.train = jax.jit(
            self._train, in_shardings=(shardings, batch), out_shardings=(shardings, replicated), donate_argnums=0
        )
        self.validate = jax.jit(self._validate, in_shardings=(shardings.variables, batch), out_shardings=replicated)

    def _init(self, key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        params, stats = init_variables(self.method, init_key)
        return TrainState(jnp.zeros((), jnp.int32), params, stats, self.optimizer.init(params), run_key)

    def _train(self, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, (metrics, stats)), grads = jax.value_and_grad(self.loss, has_aux=True)(
            state.params, state.stats, batch, key
        )
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = self.method.clamp(optax.apply_updates(state.params, updates))
        # A clamp does not ask what is frozen.
        params = jax.tree.map(
            lambda new, old, frozen: old if frozen else new,
            params,
            state.params,
            frozen_paths(state.params, self.groups),
        )
        metrics |= {"loss": loss, "grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(state.params)}
        return TrainState(state.step + 1, params, stats, opt_state, state.key), metrics

    def _validate(self, variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        loss, (metrics, _) = self.loss(variables, {}, batch, None)
        return metrics | {"loss": loss}

    def loss(
        self, params: Any, stats: Any, batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """The loss, and with it the metrics and the new batch statistics."""
        rows = len(next(iter(batch.values())))
        # One key per record: what is random about it does not depend on the micro-batch it falls into.
        keys = None if key is None else jax.random.split(key, rows)
        constrain = sharding.constrain_batch(self.mesh)
        params = jax.tree.map(
            lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
            params,
            frozen_paths(params, self.groups),
        )

        def build() -> nnx.Module:
            model = self.model(joined(params, stats))
            _lock(model, self.groups)
            return model

        model = build()

        def embed(part: tuple[Mapping[str, jax.Array], jax.Array | None], model: nnx.Module) -> dict[str, jax.Array]:
            records, keys = part
            return self.method.embed(model, records, keys=keys, dtype=self.dtype, constrain=constrain)

        # A validation batch may be smaller than a training one: in as many parts then as divide it.
        parts = max(n for n in range(1, self.microbatches + 1) if rows % (n * self.mesh.size) == 0 or n == 1)
        if parts == 1:
            embedded = embed((batch, keys), model)
        else:
            # The parts have a model each: one that lives outside the loop must not be touched inside.
            embedded = in_parts(lambda part: embed(part, build()), (batch, keys), parts, self.mesh)
        loss, metrics = self.method.loss(model, jax.tree.map(constrain, embedded), mesh=self.mesh)
        return loss, (metrics, batch_stats(model))


def _lock(model: nnx.Module, groups: Sequence[GroupConfig]) -> None:
    """Keeps the frozen layers' batch statistics out of training: they are part of what must not change."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm) and is_frozen("/".join(map(str, (*path, "scale"))), groups):
            module.locked = True
