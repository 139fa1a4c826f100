"""The optimizer and its schedule, from a config."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax

from jaxclip.config import OptimizerConfig

# Gains and biases are not decayed (Radford et al. 2021, section 2.5); the temperature is a gain.
NO_DECAY = re.compile(r"(scale|bias)$")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine to 0 at `steps`; the warm-up takes at most a tenth of a run."""
    warmup = min(config.warmup_steps, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))


def decayed(params: Any) -> Any:
    """A tree of booleans: which parameters weight decay acts on."""

    def is_decayed(path: tuple, _: jax.Array) -> bool:
        return not NO_DECAY.search(jax.tree_util.keystr(path, simple=True, separator="/"))

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def frozen_paths(params: Any, pattern: str) -> Any:
    """A tree of booleans: which parameters a recipe's `optimizer.frozen` finds; none where it is empty."""

    def is_frozen(path: tuple, _: jax.Array) -> bool:
        return bool(pattern) and bool(re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")))

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def create(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradient clipping where asked, AdamW with decoupled decay (Loshchilov and Hutter 2019), the schedule.

    Frozen parameters are not updated and have no moments.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    adamw = optax.chain(
        *clip,
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
    if not config.frozen:
        return adamw
    labels = {False: "trained", True: "frozen"}
    return optax.partition(
        {"trained": adamw, "frozen": optax.set_to_zero()},
        lambda params: jax.tree.map(labels.get, frozen_paths(params, config.frozen)),
    )
