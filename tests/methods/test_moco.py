"""MoCo v2: its loss, its momentum copy and queue, and keys that are computed in another order."""

from __future__ import annotations

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_batch import drawn_batch
from few_steps import FewSteps

from configs import moco, moco_cifar10
from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config, MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.methods.moco import Method
from jaxclip.parsing import parse
from jaxclip.step import Step, TrainState

BATCH, QUEUE, WIDTH, MOMENTUM = 16, 48, 8, 0.9
IMAGE = {"name": "vit", "image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "scan": False}


def method(**keys: Any) -> Method:
    sizes = {"embed_dim": WIDTH, "queue": QUEUE, "momentum": MOMENTUM}
    return methods.from_config({"name": "moco", "image": IMAGE, **sizes, **keys})


def rows(number: int) -> dict[str, jax.Array]:
    """Two noisy views of images of four colors each."""
    rng = np.random.default_rng(number)
    images = np.repeat(np.repeat(rng.integers(0, 192, (BATCH, 2, 2, 3)), 8, axis=1), 8, axis=2)
    return {name: jnp.asarray(images + rng.integers(0, 64, images.shape), jnp.uint8) for name in ("query", "key")}


FEW = FewSteps(method(), rows, learning_rate=2e-3)


@functools.cache
def trained() -> list[TrainState]:
    """The states before the first step and after each of three."""
    states = [FEW.first_state()]
    for number in range(3):
        states.append(FEW.run(1, jax.tree.map(jnp.copy, states[-1]), number, number + 1)[0])
    return states


@functools.partial(jax.jit, static_argnames="name")
def embedded(variables: Any, images: jax.Array, name: str) -> jax.Array:
    """Features, or keys and queries."""
    return getattr(methods.bind(method())(variables), name)(images, Context())


def keys_in(memory: Any) -> set[tuple[float, ...]]:
    return {tuple(row) for row in np.asarray(memory["keys"]["queue"], np.float64).round(4)}


def test_the_loss_is_the_papers():
    """Equation 1 in float64, from what the towers give: the copy begins as the model, the queue as it was drawn."""
    state, batch = trained()[0], rows(0)
    vectors = []
    for name in ("query", "key"):
        x = np.asarray(embedded(state.variables, batch[name], "features"), np.float64)
        head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["head"])
        hidden = np.maximum(x @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
        y = hidden @ head["out"]["kernel"] + head["out"]["bias"]
        vectors.append(y / np.linalg.norm(y, axis=1, keepdims=True))
    queries, keys = vectors
    queue = np.asarray(state.memory["keys"]["queue"], np.float64)
    logits = np.concatenate([np.sum(queries * keys, axis=1, keepdims=True), queries @ queue.T], axis=1) / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0])
    _, (found, *_) = FEW.steps(1)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["key_accuracy"] == np.mean(logits.argmax(axis=1) == 0)


def test_at_the_start_a_query_is_as_near_to_the_queue_as_to_its_own_key():
    """With a queue of keys, the loss of a model that knows nothing is ln(1 + size): 11.09 at the paper's size."""
    state = trained()[0]
    keys = [embedded(state.variables, rows(number)["key"], "embed") for number in range(QUEUE // BATCH)]
    memory = {**state.memory, "keys": {**state.memory["keys"], "queue": jnp.concatenate(keys)}}
    # Other images than the queue's.
    found = FEW.step_on(1).validate(state.variables, memory, rows(9))
    assert float(found["loss"]) == pytest.approx(np.log(1 + QUEUE), abs=0.1)


def test_losses_do_not_depend_on_the_devices():
    (state, found), (expected_state, expected) = FEW.steps(8), FEW.steps(1)
    for metrics, wanted in zip(found, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-5)
    for part in ("params", "memory"):
        trees = jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(expected_state, part))
        for leaf, wanted in zip(*trees, strict=True):
            np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-5)


def test_a_run_goes_on_bit_for_bit_with_its_copy_and_its_queue(tmp_path):
    FEW.check_resumption(tmp_path)


def test_the_copy_follows_once_a_step_before_it_gives_keys():
    start, first, second, _ = trained()
    # The first step copies: a run may start from any weights.
    jax.tree.map(np.testing.assert_array_equal, {**first.memory["slow"]}, {**start.params})
    expected = jax.tree.map(
        lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, first.memory["slow"], {**first.params}
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), second.memory["slow"], expected)
    keys = np.asarray(embedded(second.memory["slow"], rows(1)["key"], "embed"))
    queue = np.asarray(second.memory["keys"]["queue"])
    nearest = np.abs(queue[None] - keys[:, None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-5


def test_the_queue_holds_the_last_keys_and_those_alone():
    held = [keys_in(state.memory) for state in (*trained(), FEW.steps(1)[0])]
    assert [len(held[0] & later) for later in held[1:]] == [32, 16, 0, 0]
    assert [len(held[1] & later) for later in held[2:]] == [32, 16, 0]
    assert [int(state.memory["keys"]["turn"]) for state in trained()] == [0, 1, 2, 0]


def test_no_gradient_reaches_the_copy_or_the_queue():
    state, batch = trained()[1], rows(1)
    kind = method()

    def loss(memory, slow):
        model = methods.bind(kind)(state.variables)
        kept = methods.bind_memory(kind)({**memory, "slow": slow})
        ctx = Context(model=model, memory=kept, key=jax.random.key(0), step=jnp.int32(1))
        return kind.loss(model, batch, ctx)[0]

    turn = {"turn": jnp.asarray(state.memory["keys"]["turn"])}
    gradients = jax.jit(jax.grad(lambda queue, slow: loss({"keys": {"queue": queue} | turn}, slow), (0, 1)))(
        state.memory["keys"]["queue"], state.memory["slow"]
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_the_queue_is_never_gathered():
    program = FEW.compiled(8).as_text()
    assert f"f32[{QUEUE // 8},{WIDTH}]" in program and f"f32[{QUEUE},{WIDTH}]" not in program


def test_queries_come_to_know_their_keys():
    """Of images that are never seen again; the queue is full of keys from the fourth step on."""
    _, found = FEW.run(1, FEW.fresh(FEW.step_on(1)), 0, 80)
    assert np.mean([metrics["loss"] for metrics in found[-5:]]) < found[3]["loss"] - 1


# ------------------------------------------------------------------------------------------ shuffled batch statistics


GROUPS = 4


class Stub:
    """Of each image its own mean, and the mean of the group in which it is normalized."""

    def embed(self, images: jax.Array, ctx: Context) -> jax.Array:
        means = jnp.mean(images.astype(jnp.float32), axis=(1, 2, 3))
        groups = jnp.mean(means.reshape(GROUPS, -1), axis=1)
        return jnp.stack([means, jnp.repeat(groups, len(means) // GROUPS)], axis=1)


def slow_keys(devices: int, seed: int, groups: int = GROUPS) -> np.ndarray:
    """The keys of images whose mean is the number of their row."""
    kind = method(image={"name": "resnet", "image_size": 8, "norm_groups": groups})
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    images = jnp.broadcast_to(jnp.arange(BATCH, dtype=jnp.uint8)[:, None, None, None], (BATCH, 8, 8, 3))
    memory = types.SimpleNamespace(slow=Stub())

    @jax.jit
    def keys(images):
        return kind._keys(images, Context(memory=memory, mesh=mesh, key=jax.random.key(seed)))

    return np.asarray(keys(jax.device_put(images, sharding.batch_sharding(mesh))))


def test_keys_are_computed_in_random_groups_and_given_in_the_order_of_their_queries():
    found = slow_keys(1, 0)
    np.testing.assert_array_equal(found[:, 0], np.arange(BATCH))
    groups = [np.flatnonzero(found[:, 1] == mean) for mean in np.unique(found[:, 1])]
    of_queries = np.arange(BATCH) // (BATCH // GROUPS)
    assert all(len(set(of_queries[group])) > 1 for group in groups)
    assert not np.array_equal(found, slow_keys(1, 1))


def test_the_order_does_not_depend_on_the_devices():
    np.testing.assert_array_equal(slow_keys(8, 0), slow_keys(1, 0))


def test_without_groups_there_is_nothing_to_shuffle():
    np.testing.assert_array_equal(slow_keys(1, 0, groups=1)[:, 1], np.repeat([1.5, 5.5, 9.5, 13.5], 4))


@pytest.mark.slow
def test_losses_with_groups_of_batch_statistics_do_not_depend_on_the_devices():
    kind = method(image={"name": "resnet", "image_size": 32, "layers": (1, 1, 1, 1), "width": 4, "norm_groups": 4})
    found = []
    for devices in (1, 8):
        mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
        sgd = optimizer.create(OptimizerConfig(learning_rate=1e-2, warmup_steps=0, name="sgd"), 100)
        step = Step(kind, sgd, mesh, precision="float32")
        state, losses = step.init(3), []
        for _ in range(3):
            state, metrics = step.train(state, jax.device_put(drawn_batch(kind, BATCH), sharding.batch_sharding(mesh)))
            losses.append(float(metrics["loss"]))
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("recipe", [moco, moco_cifar10], ids=["paper", "toy"])
def test_the_recipes_are_complete(recipe):
    recipe = recipe.get_config()
    recipe.data.train = "x.tar"
    config = parse(Config, recipe)
    kind = methods.from_config(config.method)
    assert kind.queue % config.batch_size == 0 and config.batch_size % kind.image.norm_groups == 0
    assert {image.view for image in kind.inputs().values()} == set(config.data.views)


def test_the_head_has_the_papers_size():
    kind = methods.from_config(parse(Config, {**moco.get_config().to_dict(), "data": {"train": "x"}}).method)
    params, _ = methods.abstract_variables(kind)
    sizes = {name: params["head"][name]["kernel"].shape for name in ("hidden", "out")}
    assert sizes == {"hidden": (2048, 2048), "out": (2048, 128)} and kind.queue == 65_536


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"momentum": 1.5}, "momentum=1.5 must be at least 0 and at most 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"queue": 0}, "queue=0 must be at least 1"),
    ],
)
def test_every_wrong_key_is_named(keys, said):
    with pytest.raises(UserError, match=said):
        method(**keys)
