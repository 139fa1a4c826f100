"""Supervised classification: its loss, and the recipe."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import supervised_rn50
from jaxclip import methods
from jaxclip.config import Config
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.methods.supervised import Method
from jaxclip.parsing import parse

IMAGE = {"name": "vit", "image_size": 8, "patch_size": 4, "width": 32, "layers": 1, "heads": 2, "scan": False}
CLASSES = 5


def method() -> Method:
    return methods.from_config({"name": "supervised", "image": IMAGE, "classes": CLASSES})


def images() -> jax.Array:
    """Of a color for each of the labels."""
    colors = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 3))
    return jnp.asarray(np.broadcast_to(colors, (8, 8, 8, 3)), jnp.uint8)


LABELS = (0, 4, -1, 3, 1, CLASSES, 2, 4)


@functools.partial(jax.jit, static_argnames="kind")
def loss(variables: Any, labels: jax.Array, kind: Method) -> Any:
    model = methods.bind(kind)(variables)
    value, metrics = kind.loss(model, {"image": images(), "label": labels}, Context(model=model))
    return value, (metrics, model.classifier(model.features(images())))


@functools.cache
def variables() -> Any:
    return methods.init_variables(method(), jax.random.key(0))[0]


def test_the_loss_is_the_mean_over_images_with_a_class():
    labels = jnp.asarray(LABELS, jnp.int32)
    value, (metrics, scores) = loss(variables(), labels, method())
    scores = np.asarray(scores, np.float64)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    known = [(row, label) for row, label in enumerate(LABELS) if 0 <= label < CLASSES]
    assert float(value) == pytest.approx(-np.mean([logs[place] for place in known]), rel=1e-5)
    right = np.mean([scores[row].argmax() == label for row, label in known])
    assert float(metrics["accuracy"]) == pytest.approx(right, rel=1e-6)
    assert float(value) == pytest.approx(np.log(CLASSES), rel=0.05)


def test_a_batch_without_labels_teaches_nothing():
    value, _ = loss(variables(), jnp.full(8, -1, jnp.int32), method())
    assert float(value) == 0


def test_labels_come_to_be_known():
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames="kind")
    params, labels, found = variables(), jnp.asarray(LABELS, jnp.int32), []
    for _ in range(60):
        (value, (metrics, _)), by_params = gradient(params, labels, kind=method())
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, by_params)
        found.append((float(value), float(metrics["accuracy"])))
    assert found[-1][1] == 1 and found[-1][0] < found[0][0] / 2


def test_the_recipe_is_complete():
    recipe = supervised_rn50.get_config()
    recipe.data.train = "x.tar"
    kind = methods.from_config(parse(Config, recipe).method)
    params, _ = methods.abstract_variables(kind)
    assert params["classifier"]["kernel"].shape == (2048, 1000)
    assert set(shapes(kind.inputs(), 2)) == {"image", "label"}


def test_a_single_class_is_refused():
    with pytest.raises(UserError, match="classes=1 must be at least 2"):
        methods.from_config({"name": "supervised", "image": IMAGE, "classes": 1})
