"""PIRL: its loss, its bank of all records, and its patches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few_steps import FewSteps

from configs import pirl, pirl_cifar10
from jaxclip import methods
from jaxclip.config import Config
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import RecordId
from jaxclip.methods.pirl import Method, jigsaw
from jaxclip.parsing import parse
from jaxclip.run import check_room
from jaxclip.step import TrainState

BATCH, RECORDS, WIDTH, NEGATIVES = 16, 48, 8, 40
IMAGE = {"name": "vit", "image_size": 8, "patch_size": 4, "width": 32, "layers": 1, "heads": 2, "scan": False}


def method(**keys: Any) -> Method:
    sizes = {"embed_dim": WIDTH, "jigsaw_size": 30, "patch_size": 8, "negatives": NEGATIVES, "records": RECORDS}
    return methods.from_config({"name": "pirl", "image": IMAGE, **sizes, **keys})


def rows(number: int) -> dict[str, jax.Array]:
    """Noisy views of some of the records, each of one color; one record is there twice."""
    ids = np.random.default_rng(number).permutation(RECORDS)[:BATCH]
    ids[-1] = ids[0]
    colors = np.random.default_rng(0).integers(0, 224, (RECORDS, 1, 1, 3))[ids]
    noise = np.random.default_rng(number)
    found = {
        name: jnp.asarray(colors + noise.integers(0, 32, (BATCH, size, size, 3)), jnp.uint8)
        for name, size in (("image", 8), ("jigsaw", 30))
    }
    return found | {"record": jnp.asarray(ids, jnp.int32)}


FEW = FewSteps(method(), rows, learning_rate=5e-3)


@functools.cache
def after_one() -> tuple[TrainState, dict[str, float]]:
    state, (found,) = FEW.run(1, FEW.fresh(FEW.step_on(1)), 0, 1)
    return state, found


@functools.cache
def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """g and f of the first batch in float64, from what the tower gives and with the patches of the first step."""
    state, batch = FEW.first_state(), rows(0)
    key = jax.random.fold_in(state.key, 0)
    patches = jigsaw(batch["jigsaw"], jax.random.split(key, BATCH), 8)
    model = methods.bind(method())(state.variables)
    heads = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(state.params))

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ heads[name]["kernel"] + heads[name]["bias"]

    def features(images: jax.Array) -> np.ndarray:
        return np.asarray(jax.jit(lambda x: model.features(x, Context()))(images), np.float64)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    nine = np.concatenate([linear(features(patches[:, n]), "patch_head") for n in range(9)], axis=1)
    return unit(linear(nine, "jigsaw_head")), unit(linear(features(batch["image"]), "image_head"))


def test_the_loss_is_the_papers():
    """Equations 3 to 5 in float64; the negatives are those that the step drew."""
    state, batch = FEW.first_state(), rows(0)
    bank = np.asarray(state.memory["bank"], np.float64)
    ids = np.asarray(batch["record"])
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
    drawn = np.asarray(jax.random.randint(key, (NEGATIVES,), 0, RECORDS))
    assert set(drawn) & set(ids)

    def nce(embeddings: np.ndarray) -> float:
        losses = []
        for embedding, own in zip(embeddings, ids, strict=True):
            positive = embedding @ bank[own] / 0.07
            negatives = bank[[other for other in drawn if other != own]] @ embedding / 0.07
            others = np.exp(negatives).sum()
            h = lambda s, z=others: np.exp(s) / (np.exp(s) + z)  # noqa: E731
            losses.append(-np.log(h(positive)) - np.sum(np.log(1 - h(negatives))))
        return float(np.mean(losses))

    patches, images = (nce(x) for x in embeddings())
    _, found = after_one()
    assert found["patches_loss"] == pytest.approx(patches, rel=1e-5)
    assert found["image_loss"] == pytest.approx(images, rel=1e-5)
    assert found["loss"] == pytest.approx((patches + images) / 2, rel=1e-5)


def test_a_step_moves_the_records_of_its_batch_and_no_others():
    """Half the way to f, not to g, whose patches the bank never sees (section 2.2)."""
    (state, _), batch = after_one(), rows(0)
    ids = np.asarray(batch["record"])
    before, after = (np.asarray(s.memory["bank"], np.float64) for s in (FEW.first_state(), state))
    expected = before.copy()
    # In reverse: of a record that is there twice the first row counts.
    for row in reversed(range(BATCH)):
        moved = 0.5 * before[ids[row]] + 0.5 * embeddings()[1][row]
        expected[ids[row]] = moved / np.linalg.norm(moved)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)


def test_losses_do_not_depend_on_the_devices():
    (state, found), (expected_state, expected) = FEW.steps(8), FEW.steps(1)
    for metrics, wanted in zip(found, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(state.memory["bank"], expected_state.memory["bank"], rtol=0, atol=1e-5)


def test_a_run_goes_on_bit_for_bit_with_its_bank(tmp_path):
    FEW.check_resumption(tmp_path)


def test_a_device_holds_its_part_of_the_bank_and_never_the_whole():
    bank = FEW.step_on(8).abstract_state.memory["bank"]
    assert bank.shape == (1024, WIDTH) and bank.sharding.shard_shape(bank.shape) == (128, WIDTH)
    program = FEW.compiled(8).as_text()
    assert f"f32[128,{WIDTH}]" in program and f"f32[1024,{WIDTH}]" not in program


def test_no_gradient_reaches_the_bank():
    state, kind = FEW.first_state(), method()

    def loss(bank):
        model = methods.bind(kind)(state.variables)
        ctx = Context(model=model, memory=methods.bind_memory(kind)({"bank": bank}), key=jax.random.key(0))
        return kind.loss(model, rows(0), ctx)[0]

    assert not np.any(jax.jit(jax.grad(loss))(state.memory["bank"]))


def test_validation_needs_no_record_of_the_bank():
    """Its records are others, whatever their numbers; the bank has negatives for them alone."""
    state, batch = FEW.steps(1)[0], rows(7)
    other = {**batch, "record": batch["record"] + 1_000_000}
    found, expected = (FEW.step_on(1).validate(state.variables, state.memory, given) for given in (other, batch))
    assert {name: float(value) for name, value in found.items()} == {
        name: float(value) for name, value in expected.items()
    }


def test_images_come_to_be_known_by_their_patches():
    _, found = FEW.run(1, FEW.fresh(FEW.step_on(1)), 0, 80)
    mean = lambda part: np.mean([metrics["patches_accuracy"] for metrics in part])  # noqa: E731
    print([m["patches_accuracy"] for m in found])
    assert mean(found[:5]) < 0.2 and mean(found[-5:]) > 0.6


# ------------------------------------------------------------------------------------------------------------ patches


def numbered() -> jax.Array:
    """Images of 12 pixels whose channels are the row and the column of a pixel."""
    places = jnp.stack([*jnp.meshgrid(jnp.arange(12), jnp.arange(12), indexing="ij"), jnp.zeros((12, 12))], axis=2)
    return jnp.broadcast_to(places.astype(jnp.uint8), (64, 12, 12, 3))


@functools.cache
def cut() -> np.ndarray:
    return np.asarray(jigsaw(numbered(), jax.random.split(jax.random.key(0), 64), 3), int)


def test_each_patch_is_a_piece_of_a_cell_and_each_cell_gives_one():
    corners = cut()[:, :, 0, 0, :2]
    inside = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), axis=-1)
    np.testing.assert_array_equal(cut()[..., :2], corners[:, :, None, None] + inside)
    cells = corners // 4
    np.testing.assert_array_equal(cells, (corners + 2) // 4)
    assert all(len(set(map(tuple, of_image))) == 9 for of_image in cells)


def test_places_and_order_are_random_and_each_images_own():
    corners = cut()[:, :, 0, 0, :2]
    cells = 3 * (corners[..., 0] // 4) + corners[..., 1] // 4
    assert len(set(map(tuple, cells))) == 64
    assert np.array_equal(np.unique(cells[:, 0]), np.arange(9))
    assert {tuple(place) for place in (corners % 4).reshape(-1, 2)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    again = jigsaw(numbered()[:2], jax.random.split(jax.random.key(0), 64)[:2], 3)
    np.testing.assert_array_equal(again, cut()[:2])


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("recipe", [pirl, pirl_cifar10], ids=["paper", "toy"])
def test_the_recipes_are_complete(recipe):
    recipe = recipe.get_config()
    recipe.data.train = "x.tar"
    config = parse(Config, recipe)
    kind = methods.from_config(config.method)
    assert {image.view for image in list(kind.inputs().values())[:2]} == set(config.data.views)


def test_the_heads_have_the_papers_sizes():
    kind = methods.from_config(parse(Config, {**pirl.get_config().to_dict(), "data": {"train": "x"}}).method)
    params, _ = methods.abstract_variables(kind)
    sizes = {name: tree["kernel"].shape for name, tree in params.items() if name.endswith("_head")}
    assert sizes == {"image_head": (2048, 128), "patch_head": (2048, 128), "jigsaw_head": (1152, 128)}


def test_data_with_more_records_than_the_bank_are_refused():
    check_room(method().inputs(), RECORDS)
    check_room({"record": RecordId()}, 10**9)
    with pytest.raises(UserError, match=r"data.train has 49 records .* room for 48; set config.method.records=49"):
        check_room(method().inputs(), RECORDS + 1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"jigsaw_size": 31}, "jigsaw_size=31 must be a multiple of 3 and at least three times patch_size=8"),
        ({"jigsaw_size": 21}, "jigsaw_size=21 must be a multiple of 3 and at least three times patch_size=8"),
        ({"patch_size": 4}, "patch_size=4 must be image.image_size=8"),
        ({"patches_weight": 2.0}, "patches_weight=2.0 must be at least 0 and at most 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"records": 0}, "records=0 must be at least 1"),
    ],
)
def test_every_wrong_key_is_named(keys, said):
    with pytest.raises(UserError, match=said):
        method(**keys)
