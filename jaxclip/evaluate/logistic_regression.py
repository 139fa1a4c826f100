"""Multinomial logistic regression by L-BFGS, for several strengths of its regularizer at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxclip import sharding
from jaxclip.encoder import of_first_process

TOLERANCE = 1e-4  # of the largest entry of the gradient, as in scikit-learn
ITERATIONS = 1000
_BLOCK = 4096
_MEMORY = 10  # steps that L-BFGS remembers
_SMALLEST = 1e-3  # of a step, as a share of the one that the curvature suggests
_BURST = 32
_STALLED = 5  # steps that do not lower the value: the end in float32
_EPSILON = float(np.finfo(np.float32).eps)


class Classifiers(NamedTuple):
    """Linear classifiers, one for each strength of the regularizer: logits are x @ weights + intercept.

    Attributes:
      weights: float32 [strengths, width, classes].
      intercept: float32 [strengths, classes].
      iterations: how many points were tried for each; `ITERATIONS` if it has not converged.
    """

    weights: Float[np.ndarray, "strengths width classes"]
    intercept: Float[np.ndarray, "strengths classes"]
    iterations: Int[np.ndarray, "strengths"]


class Regression:
    """The problem of one training set, whose features stay on the devices, each with a share of the rows.

    For each strength l, what is minimized is the sum of the cross-entropies + l / 2 * |weights - prior|^2, without a
    prior as by scikit-learn's LogisticRegression(C=1 / l). The features are rotated to their principal axes, and each
    axis is scaled by what the curvature of the loss would be if all classes were as probable: the minimum stays where
    it was, and is found in tens of steps where it would take hundreds.

    Args:
      mesh: the devices.
      features: of the training images.
      labels: their classes.
      classes: how many there are.
      prior: the classifier that an infinite strength would give, which has no intercept, as then none has; by default
        weights of 0 with a free intercept.
    """

    def __init__(
        self,
        mesh: Mesh,
        features: Float[np.ndarray, "rows width"],
        labels: Int[np.ndarray, "rows"],
        classes: int,
        prior: Float[np.ndarray, "width classes"] | None = None,
    ):
        self.rows, self.classes = len(features), classes
        self._has_intercept = prior is None
        mean = features.mean(axis=0, dtype=np.float64) * self._has_intercept
        centered = features - mean.astype(np.float32)
        variances, axes = np.linalg.eigh((centered.T @ centered).astype(np.float64) / self.rows)
        # Hosts may round differently, and then have other axes.
        self._mean, self._variances, self._axes = of_first_process((mean, variances, axes))
        rows = -(-min(_BLOCK, self.rows) // mesh.size) * mesh.size
        self._prior = np.zeros((len(self._axes), classes)) if prior is None else prior.astype(np.float64)
        missing = -self.rows % rows
        rotated = centered @ self._axes.astype(np.float32)
        del centered
        if missing:
            rotated = np.pad(rotated, ((0, missing), (0, 0)))
        blocks = rotated.reshape(-1, rows, rotated.shape[1])
        # Padding has a class that does not exist, and so neither loss nor gradient.
        padded = np.pad(labels.astype(np.int32), (0, missing), constant_values=-1).reshape(-1, rows)
        self._data = sharding.from_host((blocks, padded), NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH)))
        self._replicated = NamedSharding(mesh, PartitionSpec())

    def fit(self, strengths: Float[np.ndarray, "strengths"], start: Classifiers | None = None) -> Classifiers:
        """The classifiers of several strengths, computed together.

        Args:
          strengths: of the regularizer, above 0.
          start: where each begins, such as the solution for another strength; 0 by default.
        """
        shape = (len(strengths), len(self._axes), self.classes)
        # What is looked for is how far the weights are from the prior.
        weights = np.zeros(shape, np.float32)
        intercept = np.zeros((len(strengths), self.classes), np.float32)
        if start is not None:
            weights = np.matmul(self._axes.T, start.weights - self._prior).astype(np.float32)
            intercept = (start.intercept + np.einsum("w,swc->sc", self._mean, start.weights)).astype(np.float32)
        curvature = (self.classes - 1) / self.classes**2
        strengths = np.asarray(strengths, np.float64) / self.rows
        scales = (curvature * np.maximum(self._variances, 0) + strengths[:, None]) ** -0.5
        scales, strengths = scales.astype(np.float32), strengths.astype(np.float32)
        points = np.concatenate([(weights / scales[..., None]).reshape(len(strengths), -1), intercept], axis=1)
        points, iterations = self._minima(points, strengths, scales)
        weights = points[:, : -self.classes].reshape(shape) * scales[..., None]
        weights = np.matmul(self._axes, weights) + self._prior
        intercept = points[:, -self.classes :] - np.einsum("w,swc->sc", self._mean, weights)
        return Classifiers(weights.astype(np.float32), intercept.astype(np.float32), iterations)

    def _minima(self, points: np.ndarray, strengths: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The minimum for each strength in rotated and scaled coordinates, and how many steps it took.

        Which ones are found is looked at every `_BURST` steps. They take part until two are left: each number of them
        has to be compiled for, and a single one goes along with itself.
        """
        found, iterations = points.copy(), np.zeros(len(points), np.int32)
        lanes = np.arange(max(2, len(points))) % len(points)
        state = _Lanes.beginning(points[lanes])
        going_on = np.ones(len(lanes), bool)
        while going_on.any():
            prior = (self._axes.T @ self._prior).astype(np.float32)
            problem = strengths[lanes], scales[lanes], self._axes.astype(np.float32), prior
            options = self._has_intercept, self._replicated
            state = jax.device_get(_burst(*self._data, self.rows, *problem, state, *options))
            found[lanes], iterations[lanes] = state.point, state.tries
            going_on = ~state.done & (state.tries < ITERATIONS)
            if 0 < going_on.sum() <= 2 < len(lanes):
                kept = np.resize(np.flatnonzero(going_on), 2)
                lanes, going_on = lanes[kept], going_on[kept]
                state = state.kept(kept)
        return found, iterations


class _Lanes(NamedTuple):
    """The states of L-BFGS (Nocedal and Wright 2006, algorithm 7.5), one for each strength; points are vectors.

    Attributes:
      point, value, gradient: the best so far.
      direction, size: the step from it that is tried next.
      moves, bends: the last steps and how the gradient changed in them, [lanes, memory, parameters]; what is tried as
        number n is in place n % memory, zeros if it was no better.
      curvature: the sums of moves * bends.
      scale: of the first approximation of the inverse Hessian.
      tries: how many points have been tried.
      stalled: how many of the last ones have lowered the value by no more than float32 can say.
      done: whether the gradient is as small as it shall be, or no step gets any lower.
      number: of points that have been tried in all.
    """

    point: Any
    value: Any
    gradient: Any
    direction: Any
    size: Any
    moves: Any
    bends: Any
    curvature: Any
    scale: Any
    tries: Any
    stalled: Any
    done: Any
    number: Any

    @classmethod
    def beginning(cls, points: np.ndarray) -> _Lanes:
        """Before the points themselves have been tried."""
        lanes, none = len(points), np.zeros_like(points)
        counts, whole = np.zeros(lanes, np.int32), np.ones(lanes, np.float32)
        memory = np.zeros((lanes, _MEMORY, points.shape[1]), np.float32)
        infinite, done = np.full(lanes, np.inf, np.float32), np.zeros(lanes, bool)
        products = np.zeros((lanes, _MEMORY), np.float32)
        steps = points, infinite, none, none, whole
        return cls(*steps, memory, memory, products, whole, counts - 1, counts, done, np.int32(0))

    def kept(self, lanes: np.ndarray) -> _Lanes:
        """Some of them."""
        return _Lanes(*(leaf[lanes] if leaf.ndim else leaf for leaf in self))


def _moved(lanes: _Lanes, value: jax.Array, gradient: jax.Array, largest: jax.Array) -> _Lanes:
    """The lanes after the points that they tried, which have these values and gradients."""
    step = lanes.size[:, None] * lanes.direction
    lower = value <= lanes.value + 1e-4 * (lanes.gradient * step).sum(axis=1)
    better = lower & ~lanes.done
    place = lanes.number % _MEMORY
    move = jnp.where(better[:, None], step, 0.0)
    bend = jnp.where(better[:, None], gradient - lanes.gradient, 0.0)
    product = (move * bend).sum(axis=1)
    # Only this place changes: the memory is never copied.
    moves, bends = lanes.moves.at[:, place].set(move), lanes.bends.at[:, place].set(bend)
    curvature = lanes.curvature.at[:, place].set(product)
    scale = jnp.where(product > 0, product / jnp.maximum(jnp.square(bend).sum(axis=1), 1e-30), lanes.scale)
    here = jnp.where(better[:, None], gradient, lanes.gradient)
    direction = _direction(here, moves, bends, curvature, scale, place)
    # As long as nothing is known of the curvature, a step is no longer than 1.
    careful = jnp.minimum(1.0, 1 / jnp.maximum(jnp.linalg.norm(here, axis=1), 1e-30))
    whole = jnp.where((curvature > 0).any(axis=1), 1.0, careful)
    stalled = jnp.where(lanes.value - value > _EPSILON * jnp.abs(value), 0, lanes.stalled + 1)
    found = jnp.where(lower, (largest <= TOLERANCE) | (stalled >= _STALLED), lanes.size < _SMALLEST)
    return _Lanes(
        point=jnp.where(better[:, None], lanes.point + step, lanes.point),
        value=jnp.where(better, value, lanes.value),
        gradient=here,
        direction=jnp.where(better[:, None], direction, lanes.direction),
        size=jnp.where(better, whole, lanes.size / 2),
        moves=moves,
        bends=bends,
        curvature=curvature,
        scale=scale,
        tries=lanes.tries + ~lanes.done,
        stalled=jnp.where(better, stalled, lanes.stalled),
        done=lanes.done | found,
        number=lanes.number + 1,
    )


def _direction(gradient, moves, bends, curvature, scale, newest):
    """The two-loop recursion (algorithm 7.4); steps of zero are none."""
    inverse = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)
    places = (newest - jnp.arange(_MEMORY)) % _MEMORY

    def back(q, place):
        share = inverse[:, place] * (moves[:, place] * q).sum(axis=1)
        return q - share[:, None] * bends[:, place], share

    def forth(q, place_and_share):
        place, share = place_and_share
        return q + moves[:, place] * (share - inverse[:, place] * (bends[:, place] * q).sum(axis=1))[:, None], None

    q, shares = jax.lax.scan(back, gradient, places)
    q, _ = jax.lax.scan(forth, q * scale[:, None], (places, shares), reverse=True)
    return -q


@functools.partial(jax.jit, static_argnums=(2, 8, 9))
def _burst(features, labels, rows, strengths, scales, axes, prior, state, has_intercept, replicated):
    """The state after some steps.

    All strengths try a point each at once, so that the features are read once for all of them. A step is tried whole,
    and then halved until it gets lower; the scaling makes that rare. optax's L-BFGS, whose line search waits for the
    slowest strength, took eight times as long.
    """
    lanes, width = scales.shape
    classes = state.point.shape[1] // (width + 1)

    def objective(points):
        """Values per row [lanes], gradients [lanes, parameters] and the gradients' largest entries unrotated."""
        away_from_prior = points[:, : width * classes].reshape(lanes, width, classes) * scales[..., None]
        weights = prior + away_from_prior
        intercept = points[:, width * classes :]
        # As one product of matrices, with the classes of all lanes side by side.
        columns = weights.transpose(1, 0, 2).reshape(width, lanes * classes)

        def block(total, rows_and_labels):
            x, y = rows_and_labels
            logits = jnp.matmul(x, columns, precision="highest").reshape(-1, lanes, classes) + intercept
            right = (y[:, None] == jnp.arange(classes))[:, None]
            log_probabilities = jax.nn.log_softmax(logits)
            away = jnp.where(y[:, None, None] >= 0, jnp.exp(log_probabilities) - right, 0.0)
            loss, of_columns, of_intercept = total
            return (
                loss - jnp.where(right, log_probabilities, 0.0).sum(axis=(0, 2)),
                of_columns + jnp.matmul(x.T, away.reshape(-1, lanes * classes), precision="highest"),
                of_intercept + away.sum(axis=0),
            ), None

        zero = jnp.zeros(lanes), jnp.zeros_like(columns), jnp.zeros_like(intercept)
        (loss, of_columns, of_intercept), _ = jax.lax.scan(block, zero, (features, labels))
        of_weights = of_columns.reshape(width, lanes, classes).transpose(1, 0, 2)
        loss = loss / rows + strengths / 2 * jnp.square(away_from_prior).sum(axis=(1, 2))
        of_weights, of_intercept = of_weights / rows + strengths[:, None, None] * away_from_prior, of_intercept / rows
        of_intercept *= has_intercept
        unrotated = jnp.abs(jnp.einsum("wa,lac->lwc", axes, of_weights, precision="highest")).max(axis=(1, 2))
        largest = jnp.maximum(unrotated, jnp.abs(of_intercept).max(axis=1))
        scaled = (of_weights * scales[..., None]).reshape(lanes, -1)
        return loss, jnp.concatenate([scaled, of_intercept], axis=1), largest

    def step(carry):
        state, number = carry
        tried = objective(state.point + state.size[:, None] * state.direction)
        return _moved(state, *tried), number + 1

    def goes_on(carry):
        state, number = carry
        return ~state.done.all() & (number < _BURST) & (state.tries.max() < ITERATIONS)

    state, _ = jax.lax.while_loop(goes_on, step, (state, 0))
    return jax.lax.with_sharding_constraint(state, replicated)
