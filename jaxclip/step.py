"""The one jitted training step, built from a method, an optimizer and a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import methods, sharding
from jaxclip.config import AttentionForm, GroupConfig
from jaxclip.context import Context
from jaxclip.inputs import shapes
from jaxclip.methods import Method
from jaxclip.optimizer import frozen_paths, is_frozen
from jaxclip.towers.batch_norm import BatchNorm

# (batch, ctx) -> batch, before the method's loss; see `device_augmentation`.
Augment = Callable[[Mapping[str, jax.Array], Context], Mapping[str, jax.Array]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "stats", "opt_state", "key", "memory", "average", "rate"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step passes to the next, and everything a checkpoint holds.

    Attributes:
      step: int32, steps done.
      params: nested dict of float32 arrays.
      stats: nested dict of the running averages that batch normalization keeps; empty for most models.
      opt_state: the optimizer's.
      key: the run's random key; each step folds its number in.
      memory: nested dict of what `Method.memory` holds: momentum copies, queues, banks; empty for most methods.
      average: exponential moving average of `params`; empty if the recipe asks for none.
      rate: float32, a factor on the updates; 1 unless a plateau schedule has lowered it.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    key: jax.Array
    memory: Any = dataclasses.field(default_factory=dict)
    average: Any = dataclasses.field(default_factory=dict)
    rate: Any = dataclasses.field(default_factory=lambda: np.float32(1))

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluations compute with: the averaged parameters if there are any, and the batch statistics."""
        return methods.joined(self.average or self.params, self.stats)


def compute_dtype(precision: str, platform: str) -> Any:
    """The dtype of the towers: `auto` is bfloat16 on TPU and GPU, float32 on CPU (where bfloat16 is no faster)."""
    if precision == "auto":
        precision = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(precision)


class Step:
    """Functions jitted for one method, optimizer and mesh.

    Attributes:
      abstract_state: the state's shapes, dtypes and shardings.
      init: (seed) -> a sharded TrainState.
      train: (state, batch) -> (state, metrics). The state's buffers are donated. Metrics are float32 scalars: `loss`,
        `grad_norm`, `param_norm`, `finite` (1, or 0 if the new state has a number that is not) and the method's own.
      model: (variables) -> the method's model over them.
      validate: (variables, memory, batch) -> metrics without an update or randomness.

    Raises:
      UserError: `microbatches` is more than 1 and what is computed in micro-batches has batch statistics.
    """

    def __init__(
        self,
        method: Method,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        precision: str = "auto",
        microbatches: int = 1,
        groups: Sequence[GroupConfig] = (),
        average_decay: float = 0.0,
        augment: Augment | None = None,
        attention: AttentionForm = "auto",
    ):
        self.attention = attention
        self.microbatches = microbatches
        self.groups = groups
        self.average_decay = average_decay
        self.augment = augment
        self.method = method
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.mesh = mesh
        self.dtype = compute_dtype(precision, mesh.devices.flat[0].platform)
        self.model = methods.bind(method)
        self._memory = methods.bind_memory(method)
        fresh = self._init  # One function, so that it is traced once: each look at the attribute makes another.
        abstract = jax.eval_shape(fresh, jax.random.key(0))
        shardings = sharding.state_shardings(mesh, abstract)
        self._update_shardings = sharding.update_shardings(mesh, abstract.params)
        shardings = dataclasses.replace(
            shardings,
            opt_state=sharding.update_shardings(mesh, abstract.opt_state),
            average=sharding.update_shardings(mesh, abstract.average),
        )
        self.abstract_state = jax.tree.map(
            lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), abstract, shardings
        )
        if microbatches > 1:
            self._check_separable(abstract)
        replicated = NamedSharding(mesh, PartitionSpec())
        batch = sharding.batch_sharding(mesh)
        init = jax.jit(fresh, out_shardings=shardings)
        self.init = lambda seed: init(jax.random.key(seed))
        self.train = jax.jit(
            self._train, in_shardings=(shardings, batch), out_shardings=(shardings, replicated), donate_argnums=0
        )
        self.validate = jax.jit(
            self._validate, in_shardings=(shardings.variables, shardings.memory, batch), out_shardings=replicated
        )

    def _check_separable(self, state: TrainState) -> None:
        """Traces the loss of a small batch in micro-batches, which is where batch statistics are refused."""
        batch = shapes(self.method.inputs(), self.microbatches * self.mesh.size)
        jax.eval_shape(self.loss, state.params, state.stats, state.memory, batch, state.key, state.step)

    def _init(self, key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        params, stats = methods.init_variables(self.method, init_key)
        memory = methods.init_memory(
            self.method, self.model(methods.joined(params, stats)), jax.random.fold_in(init_key, 1)
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=stats,
            opt_state=self.optimizer.init(params),
            key=run_key,
            memory=memory,
            average=params if self.average_decay else {},
            rate=jnp.ones((), jnp.float32),
        )

    def _train(self, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        loss = functools.partial(self.loss, key=key, step=state.step)
        (value, (metrics, stats, memory)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.stats, state.memory, batch
        )
        with jax.named_scope("optimizer"):
            # Each device updates its own share of the parameters.
            grads, old = (jax.lax.with_sharding_constraint(x, self._update_shardings) for x in (grads, state.params))
            # Within the optimizer, since Lookahead's slow weights follow the updates that are made.
            updates, opt_state = self.optimizer.update(grads, state.opt_state, old, rate=state.rate)
            params = self.method.clamp(optax.apply_updates(old, updates))
            # `clamp` does not know what is frozen, so frozen parameters are restored here.
            params = jax.tree.map(
                lambda new, old, frozen: old if frozen else new, params, old, frozen_paths(old, self.groups)
            )
            params = jax.lax.with_sharding_constraint(params, self._update_shardings)
            metrics |= {"loss": value, "grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(old)}
            average = self._averaged(state, params)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            stats=stats,
            opt_state=opt_state,
            memory=memory,
            average=average,
        )
        with jax.named_scope("optimizer"):
            return state, metrics | {"finite": _finite(state)}

    def _averaged(self, state: TrainState, params: Any) -> Any:
        """The moving average after an update. The first update copies, so that a run may start from any weights."""
        if not self.average_decay:
            return {}
        decay = jnp.where(state.step == 0, 0.0, self.average_decay)
        return jax.tree.map(
            lambda average, new: (decay * average + (1 - decay) * new).astype(new.dtype), state.average, params
        )

    def _validate(self, variables: Any, memory: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        loss, (metrics, *_) = self.loss(variables, {}, memory, batch)
        return metrics | {"loss": loss}

    def loss(
        self,
        params: Any,
        stats: Any,
        memory: Any,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any, Any]]:
        """The loss, and with it the metrics, the new batch statistics and the new memory.

        Without a `key` it is that of an evaluation: nothing is random, and batch statistics and memory stay.
        """
        params = jax.tree.map(
            lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
            params,
            frozen_paths(params, self.groups),
        )
        model = self.model(methods.joined(params, stats))
        _lock(model, self.groups)
        kept = self._memory(memory)
        ctx = Context(
            model=model,
            memory=kept,
            mesh=self.mesh,
            dtype=self.dtype,
            step=step,
            key=key,
            microbatches=self.microbatches,
            attention=self.attention,
        )
        if self.augment is not None:
            batch = self.augment(batch, ctx)
        loss, metrics = self.method.loss(model, batch, ctx)
        return loss, (metrics, methods.batch_stats(model), jax.lax.stop_gradient(methods.contents(kept)))


def _finite(state: TrainState) -> jax.Array:
    """1 if all numbers of a state are finite, else 0: the moments and statistics, too, which no loss shows."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])).astype(jnp.float32)


def _lock(model: nnx.Module, groups: Sequence[GroupConfig]) -> None:
    """Makes frozen layers use, and keep, their running averages in training."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm) and is_frozen("/".join(map(str, (*path, "scale"))), groups):
            module.locked = True
