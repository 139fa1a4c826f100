"""Sharding of arrays: a rule for every parameter, and equal results for any placement."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxclip import methods, optimizer, recipes, sharding
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.losses import softmax_contrastive
from jaxclip.step import Step

TINY = recipes.clip(image_size=16, patch_size=8, width=64, layers=2, text_width=64, text_layers=2, embed_dim=32)
TINY.text.update({"vocab_size": 56, "context_length": 6})
TINY.image.patch_drop = 0.5

# The published towers: image size, patch size, image width and layers, text width, embedding.
PUBLISHED = {
    "vit_b32": (224, 32, 768, 12, 512, 512),
    "vit_b16": (224, 16, 768, 12, 512, 512),
    "vit_l14": (224, 14, 1024, 24, 768, 768),
    "vit_l14_336": (336, 14, 1024, 24, 768, 768),
}


def published(name: str) -> methods.Method:
    size, patch, width, layers, text_width, embed = PUBLISHED[name]
    keys = recipes.clip(
        image_size=size,
        patch_size=patch,
        width=width,
        layers=layers,
        text_width=text_width,
        text_layers=12,
        embed_dim=embed,
    )
    return methods.from_config(keys.to_dict())


def mesh_of(devices: int, fsdp: int) -> jax.sharding.Mesh:
    return sharding.create(MeshConfig(fsdp=fsdp), jax.devices()[:devices])


def names(tree) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 1, (1, 1)),
        (MeshConfig(), 8, (8, 1)),
        (MeshConfig(fsdp=2), 8, (4, 2)),
        (MeshConfig(fsdp=8), 8, (1, 8)),
        (MeshConfig(data=2, fsdp=3), 6, (2, 3)),
    ],
)
def test_the_mesh_is_data_by_fsdp_over_all_devices(config, devices, shape):
    mesh = sharding.create(config, jax.devices()[:devices])
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "fsdp"), shape)
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(fsdp=3),
        MeshConfig(data=3),
        MeshConfig(data=8, fsdp=2),
        MeshConfig(data=0),
        MeshConfig(fsdp=0),
        MeshConfig(data=-2, fsdp=-4),
        MeshConfig(fsdp=16),
    ],
    ids=str,
)
def test_a_mesh_that_is_not_the_devices_is_one_line(config):
    expected = f"config.mesh: data={config.data} x fsdp={config.fsdp} is not the 8 devices there are"
    with pytest.raises(UserError, match=re.escape(expected)):
        sharding.create(config, jax.devices()[:8])


def test_the_rows_of_a_batch_lie_on_all_devices():
    rows = sharding.batch_sharding(mesh_of(8, 2))
    assert rows.shard_shape((16, 5, 3)) == (2, 5, 3)
    assert jax.jit(sharding.constrain_batch(mesh_of(8, 2)))(jnp.zeros((16, 5))).sharding.shard_shape((16, 5)) == (2, 5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_array_of_a_published_models_state_has_a_place(name):
    """Under fsdp all large arrays are sharded: parameters and both moments into eighths."""
    step = Step(published(name), optimizer.create(OptimizerConfig(learning_rate=1e-3), 10), mesh_of(8, 8))
    arrays = names(step.abstract_state)
    whole = {path for path, leaf in arrays.items() if leaf.sharding.is_fully_replicated}
    # The 14 * 14 * 3 values of a patch of the L/14 are not a multiple of eight.
    undivided = "|patch_kernel" if "l14" in name else ""
    small = re.compile(rf"(scale|bias|positions|class_embedding|count|step|key|rate{undivided})$")
    moments = {path for path in arrays if path.startswith("opt_state/")}
    assert {path for path in whole if path not in moments} == {
        path for path in arrays if small.search(path) and path not in moments
    }
    # The update of what is large is divided whatever its axes.
    assert all(small.search(path) and arrays[path].size < sharding.SMALL for path in whole & moments)
    sizes = {path: leaf.size for path, leaf in arrays.items()}
    assert sum(sizes[path] for path in whole) < 0.006 * sum(sizes.values())
    for path, leaf in arrays.items():
        if path not in whole:
            assert np.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == leaf.size, path


def test_moments_lie_over_all_devices_whatever_the_mesh():
    step = Step(published("vit_b32"), optimizer.create(OptimizerConfig(learning_rate=1e-3), 10), mesh_of(8, 2))
    state = step.abstract_state
    moments = {path: leaf for path, leaf in names(state.opt_state).items() if "/mu/" in path or "/nu/" in path}
    assert len(moments) == 2 * len(names(state.params))
    for path, leaf in moments.items():
        parts = 8 if leaf.size >= sharding.SMALL else 1
        assert np.prod(leaf.sharding.shard_shape(leaf.shape)) * parts == leaf.size, path
    assert names(state.params)["text/token_embedding"].sharding.shard_shape((49_408, 512)) == (24_704, 512)


def test_every_rule_is_of_use():
    resnet = {"name": "modified_resnet", "image_size": 32, "width": 8, "layers": (1, 1, 1, 1)}
    tiny = TINY.to_dict()
    paths: dict = {}
    for method in (tiny, tiny | {"image": resnet}):
        paths |= names(methods.joined(*methods.abstract_variables(methods.from_config(method))))
    paths.pop("logit_scale")
    paths |= {"memory/image_queue/queue": None}
    first = {next(n for n, (pattern, _) in enumerate(sharding.RULES) if re.search(pattern, path)) for path in paths}
    assert first == set(range(len(sharding.RULES)))


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    array = jax.ShapeDtypeStruct((12, 5), jnp.float32)
    shardings = [
        sharding.state_shardings(mesh_of(8, fsdp), {"token_embedding": array})["token_embedding"] for fsdp in (2, 4, 8)
    ]
    assert [sharding.shard_shape((12, 5)) for sharding in shardings] == [(6, 5), (3, 5), (12, 5)]


@pytest.mark.parametrize(("rows", "share"), [(16, 2), (12, 12)])
def test_a_queue_lies_over_all_devices_if_they_divide_it(rows, share):
    array = jax.ShapeDtypeStruct((rows, 5), jnp.float32)
    placed = sharding.state_shardings(mesh_of(8, 2), {"queue": array})["queue"]
    assert placed.shard_shape((rows, 5)) == (share, 5)


def test_scalars_and_keys_are_on_every_device_and_need_no_rule():
    state = {"anything": jnp.zeros(()), "key": jax.random.key(0)}
    assert all(sharding.spec == PartitionSpec() for sharding in sharding.state_shardings(mesh_of(8, 8), state).values())


def test_an_array_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"no sharding rule matches image/new_matrix \(3, 4\)"):
        sharding.state_shardings(mesh_of(8, 8), {"image": {"new_matrix": jnp.zeros((3, 4))}})


@functools.cache
def contrast(devices: int, fsdp: int):
    """The loss alone on a mesh: of half aligned unit embeddings, with its gradients by them and by the temperature."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((32, 24))
    texts = images + 2 * rng.standard_normal((32, 24))
    rows = [np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32) for x in (images, texts)]
    mesh = mesh_of(devices, fsdp)
    loss = functools.partial(softmax_contrastive, mesh=mesh)
    (value, _), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        *jax.device_put(rows, sharding.batch_sharding(mesh)), jnp.float32(1 / 0.07)
    )
    return jax.tree.map(np.asarray, (value, gradients))


@functools.cache
def gradients(devices: int, fsdp: int):
    """Loss, metrics and gradients of a whole model on a mesh, patches dropped, as plain arrays."""
    method = methods.from_config(TINY.to_dict())
    mesh = mesh_of(devices, fsdp)
    rng = np.random.default_rng(0)
    # Disturbed: fresh towers embed all images nearly alike, and their gradients all but cancel.
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), fresh_params(method)
    )
    batch = {
        "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 56, (16, 6), dtype=np.int32),
        "text_end": rng.integers(0, 6, 16, dtype=np.int32),
    }
    model = methods.bind(method)

    def loss(params, batch, key):
        ctx = Context(model=model(params), mesh=mesh, key=key)
        return method.loss(ctx.model, batch, ctx)

    placed = jax.device_put(params, sharding.state_shardings(mesh, params))
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    found = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, rows, jax.random.key(1))
    return jax.tree.map(np.asarray, found)


@functools.cache
def fresh_params(method):
    return jax.tree.map(np.asarray, jax.jit(methods.init_variables, static_argnums=0)(method, jax.random.key(0))[0])


def apart(found, expected) -> float:
    """The norm of the difference of two arrays by the norm of the second."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 2), (8, 8), (8, 1)])
def test_the_loss_and_its_gradients_do_not_depend_on_the_mesh(devices, fsdp):
    expected_value, expected = contrast(1, 1)
    value, found = contrast(devices, fsdp)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert max(map(apart, found[:2], expected[:2])) < 1e-6
    # A sum of terms of both signs whose sizes add up to about one.
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=2 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 2), (8, 8)])
def test_a_models_gradients_do_not_depend_on_the_mesh(devices, fsdp):
    (expected_loss, expected_metrics), expected = gradients(1, 1)
    (loss, metrics), found = gradients(devices, fsdp)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["batch_accuracy"], expected_metrics["batch_accuracy"], rtol=1e-6)
    # Of every parameter: a rounding of eps at each of the dozen or so operations on the way there and back.
    errors = {path: apart(gradient, names(expected)[path]) for path, gradient in names(found).items()}
    worst = max(errors, key=lambda path: errors[path])
    assert errors[worst] < 16 * np.finfo(np.float32).eps, worst
