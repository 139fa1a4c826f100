"""Methods other than CLIP with ViTs: SigLIP's loss and initialization, and CLIP with other towers."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import loss_reference
import numpy as np
import pytest
from flax import nnx

from jaxclip import methods, optimizer, sharding
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.methods import clip, siglip
from jaxclip.step import Step, TrainState
from jaxclip.towers import BertConfig, ModifiedResNetConfig, ResNetConfig, TextConfig, ViTConfig

SIZES = {"width": 32, "layers": 1, "heads": 2, "activation": "gelu_tanh", "eps": 1e-6}
VIT = {"image_size": 16, "patch_size": 4} | SIZES
TEXT = {"vocab_size": 50, "context_length": 6} | SIZES
SIGLIP = {
    "name": "siglip",
    "embed_dim": 32,
    "image": VIT | {"pool": "map", "ln_pre": False, "patch_bias": True},
    "text": TEXT | {"causal": False, "pool": "last"},
    "image_projection": False,
    "text_projection_bias": True,
}
CLIP = {"name": "clip", "embed_dim": 32, "image": VIT, "text": TEXT}
BATCH = 16


def step_of(keys: dict[str, Any], **settings: Any) -> Step:
    settings = {"learning_rate": 3e-3, "warmup_steps": 0} | settings
    adamw = optimizer.create(OptimizerConfig(**settings), 100)
    return Step(methods.from_config(keys), adamw, sharding.create(MeshConfig(), jax.devices()[:1]), "float32")


def batch_for(method: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size, context, vocabulary = method.image.image_size, method.text.context_length, method.text.vocab_size
    return {
        "image": rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8),
        "text": rng.integers(0, vocabulary, (BATCH, context), dtype=np.int32),
        "text_end": rng.integers(1, context, BATCH, dtype=np.int32),
    }


def fresh(step: Step) -> TrainState:
    """A state before the first step; a random key of this kind compiles in a fifth of the time."""
    key = jax.random.key(0, impl="rbg")
    params, stats = jax.jit(methods.init_variables, static_argnums=0).lower(step.method, key).compile()(key)
    state = TrainState(
        step=np.int32(0),
        params=params,
        stats=stats,
        opt_state=step.optimizer.init(params),
        key=jax.random.key(7),
        memory={},
        average={},
        rate=np.float32(1),
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))


# ------------------------------------------------------------------------------------------------- SigLIP


@functools.cache
def model() -> Any:
    step = step_of(SIGLIP)
    return jax.tree.map(jnp.asarray, jax.device_get(fresh(step).params)), step.model


@functools.cache
def embeddings(devices: int = 1) -> dict[str, jax.Array]:
    """Pairs that are a little alike."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((BATCH, 32))
    texts = images + rng.standard_normal((BATCH, 32))
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return jax.device_put({"image": unit(images), "text": unit(texts)}, sharding.batch_sharding(mesh))


class Given(siglip.SigLIP):
    """A model whose rows are embeddings already."""

    def __init__(self, model: siglip.SigLIP):
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias

    def encode_image(self, images, ctx):
        return images

    def encode_text(self, tokens, end, ctx):
        return tokens


def loss(params: Any, embedded: Any, devices: int) -> Any:
    """Of a model whose embeddings are given."""
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    given = Given(model()[1](params))
    batch = embedded | {"text_end": jnp.zeros(BATCH, jnp.int32)}
    return methods.from_config(SIGLIP).loss(given, batch, Context(model=given, mesh=mesh))


@pytest.mark.parametrize("devices", [1, 8])
def test_siglips_loss_is_that_of_every_pair_of_the_batch(devices):
    """At its start: a scale of 10 and a bias of -10 (section 3.2)."""
    params = model()[0]
    value_and_grad = jax.jit(jax.value_and_grad(lambda *a: loss(*a, devices), has_aux=True, argnums=(0, 1)))
    (found, metrics), (by_params, by_embedded) = value_and_grad(params, embeddings(devices))
    images, texts = (np.asarray(embeddings()[name]) for name in ("image", "text"))
    expected = loss_reference.sigmoid(images, texts, 10.0, -10.0)
    assert float(found) == pytest.approx(expected.loss, rel=1e-5)
    spreads = {f"{name}_spread": float(np.var(rows, axis=0).sum()) for name, rows in embeddings().items()}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"logit_scale": 10.0, "logit_bias": -10.0} | spreads, rel=1e-5
    )
    by_images, by_texts, by_scale, by_bias = expected.gradients
    np.testing.assert_allclose(by_embedded["image"], by_images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_embedded["text"], by_texts, rtol=0, atol=1e-5)
    # The parameter is the scale's logarithm.
    assert float(by_params["logit_scale"]) == pytest.approx(10 * by_scale, rel=1e-4)
    assert float(by_params["logit_bias"]) == pytest.approx(by_bias, rel=1e-4)
    assert abs(by_bias) > 0.1


def test_siglip_starts_at_nearly_one_mistake_per_record():
    """With all embeddings at right angles the loss is that of one pair at -10 and of the others at -10."""
    rows = np.eye(2 * BATCH, dtype=np.float32)
    found, _ = loss(model()[0], {"image": jnp.asarray(rows[:BATCH]), "text": jnp.asarray(rows[BATCH:])}, 1)
    expected = math.log1p(math.exp(10)) + (BATCH - 1) * math.log1p(math.exp(-10))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_siglip_is_not_clamped():
    method = methods.from_config(SIGLIP)
    assert method.clamp({"logit_scale": 9.0, "logit_bias": -20.0}) == {"logit_scale": 9.0, "logit_bias": -20.0}


@functools.cache
def siglip_step() -> Any:
    step = step_of(SIGLIP)
    return step, step.train.lower(step.abstract_state, batch_for(step.method)).compile()


def test_siglip_learns_a_batch_by_heart():
    step, train = siglip_step()
    state, rows = fresh(step), batch_for(step.method)
    losses = []
    for _ in range(60):
        state, metrics = train(state, rows)
        losses.append(float(metrics["loss"]))
    # A fresh one takes every pair for none, at some 10 for each of its own.
    assert losses[0] > 3 and losses[-1] < 0.5
    assert float(metrics["logit_bias"]) != -10


def test_every_parameter_of_siglip_has_a_gradient():
    """Attention pooling and its probe, the patches' bias, the projection's, and the bias of the logits."""
    step, train = siglip_step()
    state = fresh(step)
    before = paths(state.params)
    after = paths(train(state, batch_for(step.method))[0].params)
    expected = {"image/map_head/probe", "image/patch_bias", "text_projection/bias", "logit_bias"}
    assert expected <= before.keys() and "image_projection/kernel" not in before
    still = {path for path in before if np.array_equal(before[path], after[path])}
    assert still == set()


def paths(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}


# ------------------------------------------------------------------------------------------- other towers


def test_clip_trains_a_resnet_with_bert():
    resnet = {"name": "resnet", "image_size": 32, "layers": (1, 1, 1, 1), "width": 2}
    bert = {"name": "bert", "vocab_size": 50, "context_length": 6, "width": 32, "layers": 1, "heads": 2}
    step = step_of(CLIP | {"image": resnet, "text": bert})
    rows = batch_for(step.method)
    train = step.train.lower(step.abstract_state, rows).compile()
    state, losses = fresh(step), []
    before = paths(state.variables)
    for _ in range(10):
        state, metrics = train(state, rows)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.5
    still = {path for path, values in paths(state.variables).items() if np.array_equal(values, before[path])}
    assert still == set()


TOWERS = {
    "vit": (VIT, ViTConfig),
    "modified_resnet": ({"image_size": 32, "width": 2, "layers": (1, 1, 1, 1)}, ModifiedResNetConfig),
    "resnet": ({"image_size": 32}, ResNetConfig),
}
TEXTS = {"text": (TEXT, TextConfig), "bert": ({}, BertConfig)}


@pytest.mark.parametrize("name", TOWERS)
def test_the_name_selects_the_image_tower(name):
    keys, kind = TOWERS[name]
    assert type(methods.from_config(CLIP | {"image": keys | {"name": name}}).image) is kind


@pytest.mark.parametrize("name", TEXTS)
def test_the_name_selects_the_text_tower(name):
    keys, kind = TEXTS[name]
    assert type(methods.from_config(CLIP | {"text": keys | {"name": name}}).text) is kind


def test_without_names_the_towers_are_clips():
    """As in the configs of checkpoints from before there were others."""
    named = CLIP | {"image": VIT | {"name": "vit"}, "text": TEXT | {"name": "text"}}
    assert methods.from_config(CLIP) == methods.from_config(named)


@pytest.mark.parametrize("keys", [CLIP, SIGLIP, CLIP | {"text": {"name": "bert"}}], ids=["clip", "siglip", "bert"])
def test_a_method_is_restored_from_its_config(keys):
    method = methods.from_config(keys)
    assert type(method) is {"clip": clip.Method, "siglip": siglip.Method}[keys["name"]]
    assert methods.from_config(methods.to_config(method)) == method


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"image": {"name": "vti"}},
            "config.method.image.name='vti' must be one of 'vit', 'modified_resnet', 'resnet'",
        ),
        ({"text": {"name": "gpt"}}, "config.method.text.name='gpt' must be one of 'text', 'bert'"),
        ({"image": 3}, "config.method.image=3 must hold keys"),
        ({"image": VIT | {"pool": "mean"}}, "config.method.image.pool='mean' must be one of 'class', 'map'"),
        (
            {"image": {"name": "resnet", "image_size": 32, "patch_size": 4}},
            "config.method.image.patch_size is not a key",
        ),
        ({"image_projection": False, "embed_dim": 8}, "embed_dim=8 must be 32, the image tower's: no image_projection"),
        (
            {"image_projection": False, "image_projection_bias": True},
            "image_projection_bias=True needs image_projection",
        ),
        ({"image": VIT | {"drop": 1.0}}, "config.method.image.drop=1.0 must be at least 0 and below 1"),
    ],
)
def test_what_is_no_tower_is_named_in_one_line(keys, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        methods.from_config(CLIP | keys)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- projections and features


def test_features_are_what_the_projection_is_of():
    method = methods.from_config(CLIP | {"image_projection_bias": True})
    model = method.init(nnx.Rngs(params=0))
    images = jnp.asarray(batch_for(method)["image"])
    features, embedded = model.features(images, Context()), model.encode_image(images, Context())
    assert features.shape == (BATCH, method.image.output_width)
    projected = features @ model.image_projection.kernel[...] + model.image_projection.bias[...]
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(embedded, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ dropout


@functools.cache
def dropped(scan: bool, devices: int, microbatches: int, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings in training with dropout in both towers."""
    bert = {"name": "bert", "vocab_size": 50, "context_length": 6, "width": 32, "heads": 2}
    method = methods.from_config(
        CLIP
        | {
            "image": VIT | {"drop": 0.2, "layers": 2, "scan": scan},
            "text": (bert if text == "bert" else TEXT) | {"drop": 0.2, "layers": 3, "scan": scan},
        }
    )
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    params = jax.jit(methods.init_variables, static_argnums=0)(method, jax.random.key(0))[0]

    @jax.jit
    def run(params, batch):
        ctx = Context(model=methods.bind(method)(params), mesh=mesh, key=jax.random.key(5), microbatches=microbatches)
        return ctx.each(clip.embed, batch)

    rows = jax.device_put(batch_for(method), sharding.batch_sharding(mesh))
    return tuple(np.asarray(part) for part in run(params, rows))


@pytest.mark.parametrize("text", ["text", "bert"])
@pytest.mark.parametrize(("scan", "devices", "microbatches"), [(False, 1, 1), (True, 2, 4)])
def test_what_is_dropped_depends_on_the_record_alone(text, scan, devices, microbatches):
    expected = dropped(True, 1, 1, text)
    for found, one in zip(dropped(scan, devices, microbatches, text), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=0, atol=1e-5)


def test_records_lose_different_values_and_none_in_evaluation():
    method = methods.from_config(CLIP | {"image": VIT | {"drop": 0.5}, "text": TEXT | {"drop": 0.5}})
    model = method.init(nnx.Rngs(params=0))
    images = jnp.broadcast_to(jnp.asarray(batch_for(method)["image"][:1]), (4, 16, 16, 3))
    tokens, end = jnp.ones((4, 6), jnp.int32), jnp.full(4, 3, jnp.int32)
    training = Context(key=jax.random.key(0), keys=jax.random.split(jax.random.key(1), 4))
    for ctx, alike in ((Context(), True), (training, False)):
        for rows in (model.encode_image(images, ctx), model.encode_text(tokens, end, ctx)):
            assert np.array_equal(rows[0], rows[1]) == alike
