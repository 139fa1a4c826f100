"""ConVIRT: its heads, the weights of its two directions, and what makes it CLIP."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_batch import drawn_batch
from flax import nnx

from configs import convirt
from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config, MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.parsing import parse
from jaxclip.step import Step
from jaxclip.towers.bert import BertConfig

BATCH = 16
TOWER = {"width": 32, "layers": 1, "heads": 2}
TOWERS = {
    "embed_dim": 16,
    "image": {"name": "vit", "image_size": 16, "patch_size": 8, **TOWER},
    "text": {"name": "bert", "vocab_size": 50, "context_length": 6, "pool": "max", **TOWER},
}


def method(**keys: Any) -> Any:
    return methods.from_config({"name": "convirt", **TOWERS, **keys})


@functools.cache
def batch() -> dict[str, jax.Array]:
    return drawn_batch(method(), BATCH)


def loss(kind: Any, params: Any) -> jax.Array:
    model = methods.bind(kind)(params)
    return kind.loss(model, batch(), Context(model=model))[0]


def test_the_loss_is_the_papers():
    """Equations 1 to 4 in NumPy, from what the towers give."""
    kind = method()
    params, _ = methods.init_variables(kind, jax.random.key(3))
    assert "logit_scale" not in params
    model = methods.bind(kind)(params)
    ctx = Context(model=model)
    vectors = (model.features(batch()["image"], ctx), model.text(batch()["text"], batch()["text_end"], ctx))
    embedded = []
    for name, x in zip(("image_projection", "text_projection"), vectors, strict=True):
        weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[name])
        hidden = np.maximum(np.asarray(x, np.float64) @ weights["hidden"]["kernel"] + weights["hidden"]["bias"], 0)
        out = hidden @ weights["out"]["kernel"] + weights["out"]["bias"]
        embedded.append(out / np.linalg.norm(out, axis=1, keepdims=True))
    logits = embedded[0] @ embedded[1].T / 0.1
    to_text, to_image = (np.mean(np.log(np.exp(m).sum(1)) - np.diag(m)) for m in (logits, logits.T))
    assert float(loss(kind, params)) == pytest.approx(0.75 * to_text + 0.25 * to_image, rel=1e-5)


def test_with_equal_directions_a_learned_temperature_and_linear_heads_it_is_clip():
    plain = methods.from_config({"name": "clip", **TOWERS})
    same = method(head="linear", image_weight=0.5, learn_temperature=True, temperature=0.07)
    params, _ = methods.init_variables(same, jax.random.key(3))
    expected_params, _ = methods.init_variables(plain, jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected_params)
    found, expected = (jax.jit(jax.value_and_grad(functools.partial(loss, kind)))(params) for kind in (same, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)
    high = params | {"logit_scale": jnp.asarray(9.0)}
    assert float(same.clamp(high)["logit_scale"]) == float(plain.clamp(high)["logit_scale"]) < 9


def test_the_maximum_of_a_text_is_over_its_own_tokens():
    config = BertConfig(vocab_size=50, context_length=6, width=32, layers=1, heads=2, pool="max")
    tower = config.init(rngs=nnx.Rngs(params=0))
    tokens, end = jnp.array([[2, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0]]), jnp.array([3, 2])
    states = np.asarray(tower.tokens(tokens, end))
    expected = np.stack([states[0, :4].max(0), states[1, :3].max(0)])
    np.testing.assert_array_equal(tower(tokens, end), expected)
    np.testing.assert_allclose(tower(tokens.at[:, 4:].set(11), end), expected, rtol=1e-6)


def test_the_recipe_has_the_published_towers_and_freezes_the_lower_half_of_bert():
    recipe = convirt.get_config()
    recipe.data.train, recipe.data.vocabulary = "shapes", "vocab.txt"
    config = parse(Config, recipe)
    params, _ = methods.abstract_variables(methods.from_config(config.method))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    # torchvision's ResNet-50 without its classifier, BERT-base without its pooler, and the heads.
    assert counts == {
        "image": 25_557_032 - 2_049_000,
        "image_projection": 2048 * 2049 + 2049 * 512,
        "text": 109_482_240 - 590_592 - (512 - 128) * 768,  # positions of shorter texts
        "text_projection": 768 * 769 + 769 * 512,
    }
    frozen = optimizer.frozen_paths(params, config.optimizer.groups)
    sizes = [leaf.size for leaf, is_frozen in zip(*map(jax.tree.leaves, (params, frozen)), strict=True) if is_frozen]
    # Word, position and segment embeddings, their normalization, and six of twelve blocks.
    assert sum(sizes) == (30_522 + 128 + 2 + 2) * 768 + 6 * 7_087_872


@functools.cache
def steps(devices: int, microbatches: int) -> list[dict[str, float]]:
    mesh = sharding.create(MeshConfig(fsdp=min(2, devices)), jax.devices()[:devices])
    # The eps is large because the division by a gradient that is zero but for rounding would magnify the rounding.
    adam = optimizer.create(OptimizerConfig(learning_rate=1e-3, warmup_steps=0, name="adam", eps=1e-3), 100)
    step = Step(method(), adam, mesh, precision="float32", microbatches=microbatches)
    state, rows = step.init(3), jax.device_put(batch(), sharding.batch_sharding(mesh))
    found = []
    for _ in range(3):
        state, metrics = step.train(state, rows)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def test_losses_depend_on_neither_devices_nor_micro_batches():
    for found, expected in zip(steps(8, 2), steps(1, 1), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image_weight": 1.5}, "image_weight=1.5 must be at least 0 and at most 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"embed_dim": 0}, "embed_dim=0 must be at least 1"),
        ({"head": "conv"}, "config.method.head"),
    ],
)
def test_every_wrong_key_is_named(keys, said):
    with pytest.raises(UserError, match=said):
        method(**keys)
