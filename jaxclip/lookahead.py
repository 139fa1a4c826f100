"""Lookahead: k steps forward, 1 step back (Zhang et al. 2019)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class LookaheadState(NamedTuple):
    """Attributes:
    steps: int32, those done so far.
    slow: the slow weights, a tree like the parameters'.
    """

    steps: jax.Array
    slow: Any


def lookahead(every: int, size: float) -> optax.GradientTransformation:
    """The last link of an optimizer, which moves the parameters to the slow weights every so many steps.

    The parameters are the fast weights of algorithm 1. The slow weights are optimizer state, so that they are sharded
    and saved like all of it; `optax.lookahead` wants both kinds of weights as a pair of parameters instead.

    Args:
      every: steps of the fast weights for each one of the slow weights, the paper's k.
      size: of the slow weights' step, the share of the way to the fast ones, the paper's alpha.
    """

    def init(params: Any) -> LookaheadState:
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, params))

    def update(updates: Any, state: LookaheadState, params: Any = None) -> tuple[Any, LookaheadState]:
        steps = state.steps + 1
        # The parameters may have been replaced since `init`, by those of another run.
        slow = jax.tree.map(lambda slow, param: jnp.where(state.steps == 0, param, slow), state.slow, params)
        meet = steps % every == 0
        slow = jax.tree.map(
            lambda slow, param, update: jnp.where(meet, slow + size * (param + update - slow), slow),
            slow,
            params,
            updates,
        )
        updates = jax.tree.map(lambda update, slow, param: jnp.where(meet, slow - param, update), updates, slow, params)
        return updates, LookaheadState(steps, slow)

    return optax.GradientTransformation(init, update)
