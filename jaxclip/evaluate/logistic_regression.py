"""Multinomial logistic regression by L-BFGS, for several strengths of its regularizer at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxclip import sharding

TOLERANCE = 1e-4  # of the largest entry of the gradient, as in scikit-learn
ITERATIONS = 1000
_BLOCK = 4096
_MEMORY = 10  # steps that L-BFGS remembers
_SMALLEST = 1e-3  # of a step, as a share of the one that the curvature suggests
_STALLED = 5  # steps that do not lower the value: the end in float32
_EPSILON = float(np.finfo(np.float32).eps)


class Classifiers(NamedTuple):
    """Linear classifiers, one for each strength of the regularizer: logits are x @ weights + intercept.

    Attributes:
      weights: float32 [strengths, width, classes].
      intercept: float32 [strengths, classes].
      iterations: how many each took; `ITERATIONS` if it has not converged.
    """

    weights: Float[np.ndarray, "strengths width classes"]
    intercept: Float[np.ndarray, "strengths classes"]
    iterations: Int[np.ndarray, "strengths"]


class Regression:
    """The problem of one training set, whose features stay on the devices, each with a share of the rows.

    For each strength l, what is minimized is the sum of the cross-entropies + l / 2 * |weights|^2, as by scikit-learn's
    LogisticRegression(C=1 / l). The features are rotated to their principal axes, and each axis is scaled by what the
    curvature of the loss would be if all classes were as probable: the minimum stays where it was, and is found
    in tens of steps where it would take hundreds.

    Args:
      mesh: the devices.
      features: of the training images.
      labels: their classes.
      classes: how many there are.
    """

    def __init__(
        self, mesh: Mesh, features: Float[np.ndarray, "rows width"], labels: Int[np.ndarray, "rows"], classes: int
    ):
        self.rows, self.classes = len(features), classes
        self._mean = features.mean(axis=0, dtype=np.float64)
        centered = features - self._mean.astype(np.float32)
        covariance = (centered.T @ centered).astype(np.float64) / self.rows
        self._variances, self._axes = np.linalg.eigh(covariance)
        rows = -(-min(_BLOCK, self.rows) // mesh.size) * mesh.size
        missing = -self.rows % rows
        rotated = centered @ self._axes.astype(np.float32)
        blocks = np.pad(rotated, ((0, missing), (0, 0))).reshape(-1, rows, rotated.shape[1])
        # Padding has a class that does not exist, and so neither loss nor gradient.
        padded = np.pad(labels.astype(np.int32), (0, missing), constant_values=-1).reshape(-1, rows)
        self._data = jax.device_put((blocks, padded), NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH)))
        self._replicated = NamedSharding(mesh, PartitionSpec())

    def fit(self, strengths: Float[np.ndarray, "strengths"], start: Classifiers | None = None) -> Classifiers:
        """The classifiers of several strengths, computed together.

        Args:
          strengths: of the regularizer, above 0.
          start: where each begins, such as the solution for another strength; 0 by default.
        """
        shape = (len(strengths), len(self._axes), self.classes)
        weights, intercept = np.zeros(shape, np.float32), np.zeros((len(strengths), self.classes), np.float32)
        if start is not None:
            weights = np.einsum("wa,swc->sac", self._axes, start.weights).astype(np.float32)
            intercept = (start.intercept + np.einsum("w,swc->sc", self._mean, start.weights)).astype(np.float32)
        curvature = (self.classes - 1) / self.classes**2
        strengths = np.asarray(strengths, np.float64) / self.rows
        scales = (curvature * np.maximum(self._variances, 0) + strengths[:, None]) ** -0.5
        scales, strengths = scales.astype(np.float32), strengths.astype(np.float32)
        begin = weights / scales[..., None], intercept
        (weights, intercept), iterations = jax.device_get(
            _solve(*self._data, self.rows, strengths, scales, self._axes.astype(np.float32), begin, self._replicated)
        )
        weights = np.einsum("wa,sac->swc", self._axes, weights * scales[..., None])
        intercept = intercept - np.einsum("w,swc->sc", self._mean, weights)
        return Classifiers(weights.astype(np.float32), intercept.astype(np.float32), iterations)


class _Lane(NamedTuple):
    """The state of one strength's L-BFGS (Nocedal and Wright 2006, algorithm 7.5), points as vectors.

    Attributes:
      point, value, gradient: the best so far.
      direction, size: the step from it that is tried next.
      moves, bends: the last steps and how the gradient changed in them, [memory, parameters]; the newest is the last.
      tries: how many points have been tried.
      stalled: how many of the last ones have lowered the value by no more than float32 can say.
      done: whether the gradient is as small as it shall be, or no step gets any lower.
    """

    point: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    size: jax.Array
    moves: jax.Array
    bends: jax.Array
    tries: jax.Array
    stalled: jax.Array
    done: jax.Array


def _direction(gradient: jax.Array, moves: jax.Array, bends: jax.Array) -> jax.Array:
    """The two-loop recursion (algorithm 7.4); steps of zero are none."""
    products = (moves * bends).sum(axis=1)
    inverse = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1), 0)

    def back(q, step):
        move, bend, factor = step
        share = factor * (move @ q)
        return q - share * bend, share

    q, shares = jax.lax.scan(back, gradient, (moves, bends, inverse), reverse=True)
    newest = jnp.square(bends[-1]).sum()
    q = q * jnp.where(newest > 0, products[-1] / jnp.where(newest > 0, newest, 1), 1)

    def forth(r, step):
        move, bend, factor, share = step
        return r + move * (share - factor * (bend @ r)), None

    r, _ = jax.lax.scan(forth, q, (moves, bends, inverse, shares))
    return -r


@functools.partial(jax.jit, static_argnums=(2, 7))
def _solve(features, labels, rows, strengths, scales, axes, start, replicated):
    """The minimum for each strength, in rotated and scaled coordinates, and how many points it took.

    All strengths try a point each at once, so that the features are read once for all of them. A step is tried whole,
    and then halved until it gets lower; the scaling makes that rare. optax's L-BFGS, whose line search waits for the
    slowest strength, took eight times as long.
    """
    lanes, width, classes = start[0].shape

    def objective(points):
        """Values per row [lanes], gradients [lanes, parameters] and the gradients' largest entries unrotated."""
        weights = points[:, : width * classes].reshape(lanes, width, classes) * scales[..., None]
        intercept = points[:, width * classes :]

        def block(total, rows_and_labels):
            x, y = rows_and_labels
            logits = jnp.einsum("nw,lwc->lnc", x, weights, precision="highest") + intercept[:, None]
            right = y[:, None] == jnp.arange(classes)
            log_probabilities = jax.nn.log_softmax(logits)
            away = jnp.where(y[:, None] >= 0, jnp.exp(log_probabilities) - right, 0.0)
            loss, of_weights, of_intercept = total
            return (
                loss - jnp.where(right, log_probabilities, 0.0).sum(axis=(1, 2)),
                of_weights + jnp.einsum("nw,lnc->lwc", x, away, precision="highest"),
                of_intercept + away.sum(axis=1),
            ), None

        zero = jnp.zeros(lanes), jnp.zeros_like(weights), jnp.zeros_like(intercept)
        (loss, of_weights, of_intercept), _ = jax.lax.scan(block, zero, (features, labels))
        loss = loss / rows + strengths / 2 * jnp.square(weights).sum(axis=(1, 2))
        of_weights, of_intercept = of_weights / rows + strengths[:, None, None] * weights, of_intercept / rows
        unrotated = jnp.abs(jnp.einsum("wa,lac->lwc", axes, of_weights, precision="highest")).max(axis=(1, 2))
        largest = jnp.maximum(unrotated, jnp.abs(of_intercept).max(axis=1))
        scaled = (of_weights * scales[..., None]).reshape(lanes, -1)
        return loss, jnp.concatenate([scaled, of_intercept], axis=1), largest

    def moved(lane, value, gradient, largest):
        """The lane after the point that it tried, which has this value and gradient."""
        step = lane.size * lane.direction
        lower = value <= lane.value + 1e-4 * (lane.gradient @ step)
        moves = jnp.concatenate([lane.moves[1:], step[None]])
        bends = jnp.concatenate([lane.bends[1:], (gradient - lane.gradient)[None]])
        there = lane._replace(point=lane.point + step, value=value, gradient=gradient, moves=moves, bends=bends)
        there = there._replace(direction=_direction(gradient, moves, bends), size=jnp.ones(()))
        gain = (lane.value - value) / jnp.maximum(jnp.abs(lane.value), jnp.abs(value))
        stalled = jnp.where(gain > _EPSILON, 0, lane.stalled + 1)
        there = there._replace(stalled=stalled, done=(largest <= TOLERANCE) | (stalled >= _STALLED))
        here = lane._replace(size=lane.size / 2, done=lane.size < _SMALLEST)
        after = jax.tree.map(lambda a, b: jnp.where(lower, a, b), there, here)
        after = after._replace(tries=lane.tries + 1)
        return jax.tree.map(lambda a, b: jnp.where(lane.done, a, b), lane, after)

    def goes_on(state):
        return ~state.done.all() & (state.tries.max() < ITERATIONS)

    def step(state):
        return jax.vmap(moved)(state, *objective(state.point + state.size[:, None] * state.direction))

    points = jnp.concatenate([start[0].reshape(lanes, -1), start[1]], axis=1)
    value, gradient, largest = objective(points)
    none = jnp.zeros((lanes, _MEMORY, points.shape[1]))
    # As long as nothing is known of the curvature, a step is no longer than 1.
    size = jnp.minimum(1.0, 1 / jnp.linalg.norm(gradient, axis=1))
    counts = jnp.zeros(lanes, jnp.int32)
    state = _Lane(points, value, gradient, -gradient, size, none, none, counts, counts, largest <= TOLERANCE)
    state = jax.lax.while_loop(goes_on, step, state)
    weights = state.point[:, : width * classes].reshape(start[0].shape)
    found = (weights, state.point[:, width * classes :]), state.tries
    return jax.lax.with_sharding_constraint(found, replicated)
