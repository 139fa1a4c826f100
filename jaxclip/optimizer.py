"""The optimizer with its parameter groups, from a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip.config import GroupConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.lookahead import lookahead
from jaxclip.schedule import learning_rate

# Gains and biases are not decayed (Radford et al. 2021, section 2.5); the temperature is a gain.
NO_DECAY = re.compile(r"(scale|bias|^temperature)$")
# Arrays of the transformer's blocks are stacked, [layers, ...].
STACKED = re.compile(r"(^|/)blocks/")
# The matrices of linear layers: [inputs, outputs], or [layers, inputs, outputs]. The patch embedding is a convolution.
MATRIX = re.compile(r"(?<!/patch)_kernel$|/kernel$")


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf that `jax.tree_util` gives the path of, such as image/positions."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def group_of(path: str, groups: Sequence[GroupConfig]) -> GroupConfig | None:
    """The first rule that matches a parameter's path."""
    return next((group for group in groups if re.search(group.match, path)), None)


def is_frozen(path: str, groups: Sequence[GroupConfig]) -> bool:
    """Whether a rule freezes the parameter of this path."""
    group = group_of(path, groups)
    return group is not None and group.rate == 0


def frozen_paths(params: Any, groups: Sequence[GroupConfig]) -> Any:
    """A tree of booleans: which parameters are frozen."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_frozen(name_of(path), groups), params)


def check_groups(params: Any, groups: Sequence[GroupConfig]) -> None:
    """Checks that each rule has parameters of its own and that some are trained.

    Args:
      params: a tree of arrays or their shapes.
      groups: the config's `optimizer.groups`.

    Raises:
      UserError: a rule finds no parameter, or only such as an earlier one has; a rule with a decay by layer finds an
        array that is not stacked; every parameter is frozen.
    """
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for number, group in enumerate(groups):
        where = f"config.optimizer.groups[{number}]"
        matched = [name for name in names if re.search(group.match, name)]
        own = [name for name in matched if group_of(name, groups[:number]) is None]
        if not matched:
            raise UserError(f"{where}.match={group.match!r} is found in no parameter's path, such as {names[0]}")
        if not own:
            raise UserError(
                f"{where}.match={group.match!r} finds only parameters of the rules before it, such as {matched[0]}; "
                f"the first rule that matches applies, so put this one before them"
            )
        unstacked = [name for name in own if not STACKED.search(name)]
        if group.layer_decay != 1 and unstacked:
            raise UserError(
                f"{where}.layer_decay={group.layer_decay} is for stacked blocks, and {unstacked[0]} is none; "
                f"match blocks/ only"
            )
    if all(is_frozen(name, groups) for name in names):
        raise UserError("config.optimizer.groups freeze every parameter; nothing is left to train")


def weight_decay(path: str, config: OptimizerConfig) -> float:
    """The weight decay of the parameter of this path."""
    group = group_of(path, config.groups)
    if NO_DECAY.search(path) and not (group and group.decay_all):
        return 0.0
    return config.weight_decay if group is None or group.weight_decay < 0 else group.weight_decay


def rates(config: OptimizerConfig, steps: int, step: int, rate: float = 1.0) -> dict[str, float]:
    """The learning rates of an update, as metrics.

    Args:
      config: the optimizer's.
      steps: length of the run.
      step: updates done before this one.
      rate: the factor of the plateau schedule.

    Returns:
      `learning_rate`, and `learning_rate/MATCH` for each group that is trained at another; of stacked layers with a
      decay by layer, that of the last.
    """
    overall = float(learning_rate(config, steps)(step)) * rate
    own = {group.match: group.rate for group in config.groups if group.rate not in (0, 1)}
    return {"learning_rate": overall} | {f"learning_rate/{match}": overall * factor for match, factor in own.items()}


def create(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run of `steps`.

    Gradients are clipped if `clip_norm` is set. Decay is decoupled (Loshchilov and Hutter 2019) for "adamw" and "muon",
    and added to the gradient for "adam" and "sgd", as in PyTorch. Frozen parameters are not updated and have no state;
    their gradients do not count for clipping.

    Its `update` takes a keyword `rate`, a scalar that the learning rate is multiplied by; 1 if it is not given.

    Raises:
      UserError: `config.schedule` is wrong.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    direction, decay = _direction(config), _decay(config)
    trained = _with_rate(
        optax.chain(
            *clip,
            *([direction, decay] if config.name in ("adamw", "muon") else [decay, direction]),
            *_group_rates(config.groups),
            optax.scale_by_learning_rate(learning_rate(config, steps)),
        )
    )
    if config.lookahead[0]:
        trained = optax.chain(trained, lookahead(*config.lookahead))
    if not any(group.rate == 0 for group in config.groups):
        return trained
    labels = {False: "trained", True: "frozen"}
    return optax.partition(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda params: jax.tree.map(labels.get, frozen_paths(params, config.groups)),
    )


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """From gradients to updates before the learning rate."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if config.name == "sgd":
        return optax.trace(config.beta1)
    if config.name != "muon":
        return adam
    labels = {True: "muon", False: "adam"}
    return optax.partition(
        {"muon": _muon(config.beta1), "adam": adam}, lambda params: jax.tree.map(labels.get, matrices(params))
    )


def matrices(params: Any) -> Any:
    """A tree of booleans: which parameters are matrices of linear layers, alone or stacked, which Muon is for."""

    def is_matrix(path: tuple, leaf: Any) -> bool:
        name = name_of(path)
        return bool(MATRIX.search(name)) and leaf.ndim == (3 if STACKED.search(name) else 2)

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _muon(momentum: float) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for arrays whose last two axes are matrices, with updates as large as AdamW's.

    Liu et al. 2025 (Muon is scalable for LLM training, section 2.2) scale them by 0.2 sqrt(max(inputs, outputs)), so
    that one learning rate and one decay serve Muon and AdamW. Query, key and value are one matrix.
    """

    def axes(params: Any) -> Any:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), params)

    def scale(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda update: 0.2 * max(update.shape[-2:]) ** 0.5 * update, updates)

    muon = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=axes)
    return optax.chain(muon, optax.stateless(scale))


def _decay(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adds weight decay to updates, each parameter's own."""

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: weight_decay(name_of(path), config) > 0, params)

    def add(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, update, param: update + weight_decay(name_of(path), config) * param, updates, params
        )

    return optax.masked(optax.stateless(add), decayed)


def _group_rates(groups: Sequence[GroupConfig]) -> list[optax.GradientTransformation]:
    """Multiplies updates by the rates of their groups and layers; nothing if all are trained at one rate."""
    if all(group.rate in (0, 1) and group.layer_decay == 1 for group in groups):
        return []

    def scaled(path: tuple, update: jax.Array) -> jax.Array:
        group = group_of(name_of(path), groups)
        if group is None:
            return update
        if group.layer_decay == 1:
            return group.rate * update
        factors = group.rate * group.layer_decay ** jnp.arange(len(update) - 1, -1, -1, dtype=update.dtype)
        return factors.reshape(-1, *(1,) * (update.ndim - 1)) * update

    return [optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))]


def _with_rate(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by the keyword `rate` of `update`."""

    def update(
        updates: Any, state: Any, params: Any = None, *, rate: Any = None, **_: Any
    ) -> tuple[Any, optax.OptState]:
        updates, state = inner.update(updates, state, params)
        return updates if rate is None else jax.tree.map(lambda update: rate * update, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
