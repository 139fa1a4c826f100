"""Logistic regression compared with scikit-learn's, and on any devices."""

from __future__ import annotations

import numpy as np
import pytest
from look_up import mesh_of
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from jaxclip.evaluate.logistic_regression import ITERATIONS, Classifiers, Regression

STRENGTHS = np.array([1e-1, 1e1, 1e3])


def problem(rows: int = 200, width: int = 12, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features with axes of very different lengths, far from 0, and labels that they do not determine."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    centers = rng.standard_normal((classes, width))
    mixed = (rng.standard_normal((rows, width)) + 0.5 * centers[labels]) @ rng.standard_normal((width, width))
    return (3 + mixed * np.logspace(0, -2, width)).astype(np.float32), labels


def objective(features, labels, weights, intercept, strength: float) -> float:
    logits = features.astype(np.float64) @ weights + intercept
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return float(losses.sum() + strength / 2 * np.square(np.asarray(weights, np.float64)).sum())


@pytest.mark.parametrize("devices", (1, 8))
@pytest.mark.parametrize("classes", (2, 4))
def test_the_minimum_is_scikit_learns(devices, classes):
    features, labels = problem(classes=classes)
    found = Regression(mesh_of(devices), features, labels, classes).fit(STRENGTHS)
    assert found.iterations.max() < ITERATIONS
    for number, strength in enumerate(STRENGTHS):
        expected = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-8)
        expected.fit(features.astype(np.float64), labels)
        weights, intercept = expected.coef_.T, expected.intercept_
        if classes == 2:
            # scikit-learn has one difference of logits, whose halves have half of the penalty each.
            expected = LogisticRegression(C=2 / strength, solver="newton-cholesky", tol=1e-8)
            expected.fit(features.astype(np.float64), labels)
            half = expected.coef_.T / 2
            weights, intercept = np.hstack([-half, half]), np.hstack([-expected.intercept_, expected.intercept_]) / 2
        lowest = objective(features, labels, weights, intercept, strength)
        ours = objective(features, labels, found.weights[number], found.intercept[number], strength)
        assert ours == pytest.approx(lowest, rel=1e-5)
        np.testing.assert_allclose(found.weights[number], weights, atol=2e-2 * np.abs(weights).max())


def test_a_start_near_the_minimum_takes_fewer_steps():
    features, labels = problem()
    regression = Regression(mesh_of(1), features, labels, 4)
    near = regression.fit(np.array([10.0]))
    again = regression.fit(np.array([11.0]), near)
    assert again.iterations[0] < regression.fit(np.array([11.0])).iterations[0]
    assert regression.fit(np.array([10.0]), near).iterations[0] == 0


def test_a_feature_that_is_constant_and_a_class_without_images_are_no_obstacle():
    features, labels = problem()
    features[:, 3] = 7.0
    found = Regression(mesh_of(1), features, labels, 6).fit(np.array([1e-6, 1.0]))
    assert all(np.isfinite(part).all() for part in found)
    logits = features @ found.weights[1] + found.intercept[1]
    assert logits.argmax(axis=1).max() <= 3


def test_features_without_any_difference_give_the_frequencies_of_the_classes():
    labels = np.array([0, 0, 0, 1])
    found = Regression(mesh_of(1), np.ones((4, 5), np.float32), labels, 2).fit(np.array([1.0]))
    np.testing.assert_allclose(found.weights[0], 0, atol=1e-6)
    logits = found.intercept[0]
    assert np.exp(logits[0]) / np.exp(logits).sum() == pytest.approx(0.75, abs=1e-3)


def test_a_prior_is_what_the_weights_are_pulled_to():
    features, labels = problem(rows=60, width=3)
    prior = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    regression = Regression(mesh_of(1), features, labels, 4, prior)
    found = regression.fit(np.array([1e-1, 1e1, 1e7]))

    def value(point, strength):
        weights = point.reshape(3, 4)
        return objective(features, labels, weights, 0.0, 0.0) + strength / 2 * np.square(weights - prior).sum()

    for number, strength in enumerate((1e-1, 1e1)):
        lowest = minimize(value, np.zeros(12), strength, method="BFGS", options={"gtol": 1e-6, "maxiter": 5000}).fun
        assert value(found.weights[number].ravel(), strength) == pytest.approx(lowest, rel=1e-5)
    assert not found.intercept.any()
    np.testing.assert_allclose(found.weights[2], prior, atol=1e-4)
    # A start is taken for what it is, and not as far from the prior.
    again = regression.fit(np.array([1e1]), Classifiers(*(part[1:2] for part in found)))
    assert again.iterations[0] <= 1 < found.iterations[1]
