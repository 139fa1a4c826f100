"""ALBEF: its three losses, the momentum copy and its queues, hard negatives, and what the model can be asked."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few_steps import FewSteps

from configs import albef, albef_shapes
from jaxclip import methods
from jaxclip.config import Config
from jaxclip.context import SECOND_TOWER, Context
from jaxclip.errors import UserError
from jaxclip.losses.contrastive import softmax_contrastive
from jaxclip.methods.albef import Method
from jaxclip.parsing import parse
from jaxclip.step import TrainState

BATCH, QUEUE, WIDTH, MOMENTUM, WORDS, LENGTH, MASK = 16, 48, 8, 0.9, 40, 8, 3
IMAGE = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
TEXT = {"vocab_size": WORDS, "context_length": LENGTH, "width": 16, "layers": 2, "heads": 2, "drop": 0.1}
ALPHA, RAMP = 0.4, 8


def method(**keys: Any) -> Method:
    towers = {"image": IMAGE, "text": TEXT, "embed_dim": WIDTH, "mask_id": MASK}
    sizes = {"queue": QUEUE, "momentum": MOMENTUM, "distillation_steps": RAMP, "negatives_among": 2}
    return methods.from_config({"name": "albef", **towers, **sizes, **keys})


def rows(number: int) -> dict[str, jax.Array]:
    """Images of one brightness each, and texts whose words say it."""
    rng = np.random.default_rng(number)
    shade = rng.integers(0, WORDS - 4, BATCH)
    images = np.clip(6 * shade[:, None, None, None] + rng.integers(0, 8, (BATCH, 16, 16, 3)), 0, 255)
    end = rng.integers(3, LENGTH, BATCH)
    tokens = np.where(np.arange(LENGTH) < end[:, None], 4 + shade[:, None], 0)
    tokens[:, 0], tokens[np.arange(BATCH), end] = 1, 2
    found = {"image": images.astype(np.uint8), "text": tokens.astype(np.int32), "text_end": end.astype(np.int32)}
    return {name: jnp.asarray(value) for name, value in found.items()}


FEW = FewSteps(method(), rows, learning_rate=2e-3)


@functools.cache
def trained() -> list[TrainState]:
    """The states before the first step and after each of three."""
    states = [FEW.first_state()]
    for number in range(3):
        states.append(FEW.run(1, jax.tree.map(jnp.copy, states[-1]), number, number + 1)[0])
    return states


@functools.partial(jax.jit, static_argnames=("names",))
def called(variables: Any, *rows: jax.Array, names: tuple[str, ...]) -> Any:
    """A function of the model, and further ones of what it gives."""
    model = methods.bind(method())(variables)
    for name in names:
        rows = (getattr(model, name)(*rows),)
    return rows[0]


def embedded(variables: Any, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    images = called(variables, batch["image"], names=("encode_image",))
    texts = called(variables, batch["text"], batch["text_end"], names=("encode_text",))
    return np.asarray(images, np.float64), np.asarray(texts, np.float64)


def contrastive(ours: Any, slow: Any, queues: Any, alpha: float, scale: float, own: Any = None) -> float:
    """Equation 6 from its definition."""
    total = 0.0
    for side in (0, 1):
        keys = np.concatenate([slow[1 - side], *([queues[1 - side]] if queues else [])])
        target = np.eye(len(ours[0]), len(keys)) if own is None else own

        def shares(queries: np.ndarray, keys: np.ndarray = keys) -> np.ndarray:
            powers = np.exp(scale * queries @ keys.T)
            return powers / powers.sum(axis=1, keepdims=True)

        target = (1 - alpha) * target + alpha * shares(slow[side])
        total += -np.mean(np.sum(target * np.log(shares(ours[side])), axis=1)) / 2
    return total


def queues_of(memory: Any) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(memory[name]["queue"], np.float64) for name in ("images", "texts"))  # type: ignore


# ------------------------------------------------------------------------------------------------------------- losses


def test_the_contrastive_loss_is_the_papers():
    """Against the copy's embeddings of the batch and of the queues, with the copy's answers among the targets."""
    state, batch = trained()[2], rows(7)
    found = FEW.step_on(1).validate(state.variables, state.memory, batch)
    model, slow = (
        embedded(variables, batch) for variables in (state.variables, {**state.variables, **state.memory["slow"]})
    )
    scale = 1 / float(state.params["temperature"])
    expected = contrastive(model, slow, queues_of(state.memory), ALPHA, scale)
    assert float(found["contrastive_loss"]) == pytest.approx(expected, rel=1e-5)
    assert np.abs(model[0] - slow[0]).max() > 1e-3


def test_without_queue_and_distillation_it_is_clips_loss_with_fixed_keys():
    kind = method(queue=0, momentum=0.0, distillation=0.0, text={**TEXT, "drop": 0.0}, mask_id=-1)
    state, batch = trained()[0], rows(0)
    names = ("image", "text", "image_projection", "text_projection", "words", "matching", "temperature")
    params = {name: state.params[name] for name in names}

    def losses(params: Any) -> tuple[jax.Array, jax.Array]:
        model = methods.bind(kind)(params)
        memory = methods.bind_memory(kind)({"slow": {name: params[name] for name in names[:5]}})
        ctx = Context(model=model, memory=memory, key=jax.random.key(0), step=jnp.int32(1))
        ours = kind.loss(model, batch, ctx)[1]["contrastive_loss"]
        images = model.encode_image(batch["image"])
        texts = model.encode_text(batch["text"], batch["text_end"])
        scale = model.scale_and_bias()[0]
        # Each side looks for the other one, which stands still.
        one, _ = softmax_contrastive(images, jax.lax.stop_gradient(texts), scale, image_weight=1.0)
        other, _ = softmax_contrastive(jax.lax.stop_gradient(images), texts, scale, image_weight=0.0)
        return ours, (one + other) / 2

    (ours, expected), gradients = jax.jit(lambda params: (losses(params), jax.jacrev(losses)(params)))(params)
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)
    # The keys' part of the derivative is left out of either side by a stop.
    for found, wanted in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_at_the_start_pairs_and_words_are_guessed():
    """ln 2 for a pair, and ln of the vocabulary for a word (10.33 at BERT's size)."""
    state = trained()[0]
    found = FEW.step_on(1).validate(state.variables, state.memory, rows(0))
    assert float(found["matching_loss"]) == pytest.approx(np.log(2), abs=0.1)
    assert float(found["masked_loss"]) == pytest.approx(np.log(WORDS), abs=0.1)


def test_the_copys_share_of_the_targets_grows():
    shares = [float(method().alpha(Context(step=jnp.int32(step)))) for step in (0, 3, RAMP - 1, 100)]
    assert shares == pytest.approx([ALPHA / RAMP, ALPHA / 2, ALPHA, ALPHA])
    assert float(method().alpha(Context())) == pytest.approx(ALPHA)


def test_all_three_losses_fall():
    """Of images that are never seen again; the pairs' below 0.637, what one wrong answer in three alone explains."""
    few = FewSteps(method(text={**TEXT, "drop": 0.0, "stddev": 0.1}, queue=0), rows, learning_rate=1e-2, eps=1e-6)
    _, found = few.run(1, few.fresh(few.step_on(1)), 0, 150)
    last = {name: np.mean([metrics[name] for metrics in found[-10:]]) for name in found[0]}
    assert last["matching_loss"] < 0.6
    for name in ("contrastive_loss", "masked_loss"):
        assert last[name] < found[0][name] - 0.5


# -------------------------------------------------------------------------------------------------- copies and queues


def test_losses_do_not_depend_on_the_devices():
    (state, found), (expected_state, expected) = FEW.steps(8), FEW.steps(1)
    for metrics, wanted in zip(found, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-4)
    for part in ("params", "memory"):
        trees = jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(expected_state, part))
        for leaf, wanted in zip(*trees, strict=True):
            np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=2e-5)


def test_a_run_goes_on_bit_for_bit_with_its_copy_and_its_queues(tmp_path):
    FEW.check_resumption(tmp_path)


def test_the_copy_follows_once_a_step_before_it_gives_keys():
    start, first, second, _ = trained()
    slow = first.memory["slow"]
    jax.tree.map(np.testing.assert_array_equal, slow, {name: start.params[name] for name in slow})
    assert set(start.params) - set(slow) == {"matching", "temperature"}
    expected = jax.tree.map(
        lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, slow, {name: first.params[name] for name in slow}
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), second.memory["slow"], expected)
    keys = embedded({**second.params, **second.memory["slow"]}, rows(1))
    for queue, wanted in zip(queues_of(second.memory), keys, strict=True):
        assert np.abs(queue[None] - wanted[:, None]).max(axis=2).min(axis=1).max() < 1e-5


def test_no_gradient_reaches_the_copy_or_the_queues():
    state, kind = trained()[1], method()

    def loss(memory: Any) -> jax.Array:
        model = methods.bind(kind)(state.variables)
        ctx = Context(model=model, memory=methods.bind_memory(kind)(memory), key=jax.random.key(0), step=jnp.int32(1))
        return kind.loss(model, rows(1), ctx)[0]

    gradients = jax.jit(jax.grad(loss, allow_int=True))(state.memory)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients) if leaf.dtype == jnp.float32)


def test_neither_a_queue_nor_the_tokens_of_the_batch_are_gathered():
    """Groups of two records lie on one device each."""
    program = FEW.compiled(8).as_text()
    gathered = [line for line in program.splitlines() if " all-gather(" in line or " all-gather-start(" in line]
    for shape in (f"[{QUEUE},{WIDTH}]", f"[{BATCH},5,16]", f"[{BATCH},{LENGTH},16]"):
        assert not any(shape in line for line in gathered), shape
    assert any(f"[{BATCH},{WIDTH}]" in line for line in gathered)  # the queries of the contrastive loss


def test_records_with_the_same_number_are_positives_wherever_they_are():
    kind = method(positives="record", mask_id=-1, text={**TEXT, "drop": 0.0})
    assert set(kind.inputs()) == {"image", "text", "record"}
    state, batch = trained()[1], rows(3)
    numbers = np.arange(BATCH) % 5
    queued = np.arange(QUEUE) % 7
    memory = {**state.memory, "records": {"queue": jnp.asarray(queued[:, None], jnp.int32), "turn": jnp.int32(0)}}

    @jax.jit
    def run(memory: Any, batch: Any) -> Any:
        model, kept = methods.bind(kind)(state.variables), methods.bind_memory(kind)(memory)
        found = kind.loss(model, batch, Context(model=model, memory=kept, key=jax.random.key(0), step=jnp.int32(RAMP)))
        return found[1], methods.contents(kept)

    found, after = run(memory, {**batch, "record": jnp.asarray(numbers, jnp.int32)})
    own = (numbers[:, None] == np.concatenate([numbers, queued])).astype(float)
    pair = embedded(state.variables, batch), embedded({**state.params, **after["slow"]}, batch)
    scale = 1 / float(state.params["temperature"])
    expected = contrastive(*pair, queues_of(state.memory), ALPHA, scale, own / own.sum(axis=1, keepdims=True))
    assert float(found["contrastive_loss"]) == pytest.approx(expected, rel=1e-5)
    kept = set(np.asarray(after["records"]["queue"]).ravel().tolist())
    assert kept <= set(range(7)) and np.count_nonzero(np.asarray(after["records"]["queue"])[:, 0] != queued) > 0


def test_in_validation_no_record_of_the_queue_is_a_positive():
    """Its numbers are those of the training data."""
    kind = method(positives="record")
    batch = {"record": jnp.arange(BATCH), "text": rows(0)["text"]}
    queued = {"queue": jnp.arange(QUEUE)[:, None], "turn": jnp.int32(0)}
    memory = methods.bind_memory(kind)({**trained()[1].memory, "records": queued})
    for key, total in ((None, 0), (jax.random.key(0), 8)):
        of_batch, of_queue = kind._own(batch, Context(memory=memory, key=key))
        assert float(of_queue.sum()) == total and float((of_batch + 0).sum()) == BATCH - total


def test_dropout_and_masks_are_drawn_with_keys_of_their_own():
    """Keys of all uses in a stage of masked words, and of both towers: folds of one record's key."""
    ctx = Context(keys=jax.random.split(jax.random.key(0), 1))
    blocks = [ctx.fold(number) for number in range(1, 25)]
    texts = [ctx.fold(SECOND_TOWER).fold(number) for number in range(25)]
    others = [ctx.fold(SECOND_TOWER + 2), ctx.fold(SECOND_TOWER + 1).fold(SECOND_TOWER)]
    keys = {tuple(jax.random.key_data(one.keys)[0].tolist()) for one in (*blocks, *texts, *others)}
    assert len(keys) == len(blocks) + len(texts) + len(others)


def test_a_teacher_has_dropout_only_if_it_is_asked_for():
    """Two students that are the copy itself, one with dropout: only then is the copy another one."""
    state, batch = trained()[0], rows(0)

    def embedded_slowly(kind: Method) -> np.ndarray:
        memory = methods.bind_memory(kind)({"slow": {name: state.params[name] for name in trained()[1].memory["slow"]}})
        ctx = Context(memory=memory, keys=jax.random.split(jax.random.key(1), BATCH), key=jax.random.key(1))
        return np.asarray(kind._encode_slowly(None, batch, ctx)["text"])

    steady, dropped = (embedded_slowly(method(queue=0, teacher_dropout=dropout)) for dropout in (False, True))
    np.testing.assert_allclose(steady, embedded(state.variables, batch)[1], atol=1e-5)
    assert np.abs(steady - dropped).max() > 1e-3


def test_a_small_validation_set_has_smaller_groups():
    kind, state = method(negatives_among=8, queue=0, mask_id=-1), trained()[0]
    memory = {"slow": trained()[1].memory["slow"]}
    few = {name: value[:12] for name, value in rows(0).items()}

    @jax.jit
    def loss(batch: Any) -> Any:
        ctx = Context(model=methods.bind(kind)(state.params), memory=methods.bind_memory(kind)(memory))
        return kind.loss(ctx.model, batch, ctx)[0]

    assert np.isfinite(float(loss(few)))


def test_losses_do_not_depend_on_micro_batches():
    """Tokens, pairs and masked words are computed part by part; what the losses share is the whole batch's."""
    kind, state = method(), trained()[1]

    def losses(parts: int) -> dict[str, jax.Array]:
        model, memory = methods.bind(kind)(state.params), methods.bind_memory(kind)(state.memory)
        ctx = Context(model=model, memory=memory, key=jax.random.key(0), step=jnp.int32(1), microbatches=parts)
        return kind.loss(model, rows(1), ctx)[1]

    found, expected = (
        {name: float(value) for name, value in jax.jit(functools.partial(losses, parts))().items()} for parts in (4, 1)
    )
    assert found == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------- what it is asked for


def test_words_behind_the_end_are_not_seen():
    state, batch = trained()[3], rows(0)
    behind = jnp.where(jnp.arange(LENGTH) > batch["text_end"][:, None], 9, batch["text"])
    ask = ("word_places",)
    found = called(state.variables, batch["image"], batch["text"], batch["text_end"], names=ask)
    again = called(state.variables, batch["image"], behind, batch["text_end"], names=ask)
    np.testing.assert_allclose(found, again, atol=1e-6)
    assert found.shape == (BATCH, LENGTH, 4) and found.min() == 0 < found.max()
    behind_end = np.arange(LENGTH) > np.asarray(batch["text_end"])[:, None]
    assert not np.any(np.asarray(found)[behind_end])


def test_the_functions_of_the_model_agree():
    state, batch = trained()[3], rows(0)
    tokens = called(state.variables, batch["image"], names=("image_tokens",))
    np.testing.assert_allclose(
        called(state.variables, batch["image"], names=("features",)), np.asarray(tokens)[:, 0], rtol=1e-5
    )
    again = called(state.variables, tokens, names=("embed_image",))
    np.testing.assert_allclose(called(state.variables, batch["image"], names=("encode_image",)), again, rtol=1e-5)
    states = called(state.variables, batch["text"], batch["text_end"], names=("text_states",))
    odds = called(state.variables, tokens, states, batch["text_end"], names=("match",))
    assert odds.shape == (BATCH,)
    assert np.abs(np.asarray(odds) - np.asarray(called(state.variables, tokens[::-1], states, batch["text_end"],
                                                       names=("match",)))).max() > 1e-4  # fmt: skip


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("recipe", [albef, albef_shapes], ids=["paper", "toy"])
def test_the_recipes_are_complete(recipe):
    recipe = recipe.get_config()
    recipe.data.train = "x.tar"
    config = parse(Config, recipe)
    kind = methods.from_config(config.method)
    assert kind.queue % config.batch_size == 0


def test_the_paper_has_210_million_parameters():
    """Of them 86M see, and 124M read, fuse and predict words (section 3.1); ITEMS are in docs/albef.md."""
    recipe = albef.get_config()
    recipe.data.train = "x"
    params, _ = methods.abstract_variables(methods.from_config(parse(Config, recipe).method))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert count == {
        "image": 85_844_736,
        "text": 122_704_896,
        "words": 622_650,
        "image_projection": 196_864,
        "text_projection": 196_864,
        "matching": 1_538,
        "temperature": 1,
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"momentum": 1.5}, "momentum=1.5 must be at least 0 and at most 1"),
        ({"distillation": -0.1}, "distillation=-0.1 must be at least 0 and at most 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be at least 0.001 and at most 0.5"),
        ({"image": {**IMAGE, "pool": "map"}}, "image.pool='map' must be 'class'"),
        ({"image": {**IMAGE, "patch_drop": 0.5}}, "image.patch_drop must be 0"),
        ({"text": {**TEXT, "lower": 0}}, "text.lower must be above 0"),
        ({"negatives_among": -1}, "negatives_among=-1 must not be negative"),
    ],
)
def test_every_wrong_key_is_named(keys, said):
    with pytest.raises(UserError, match=said):
        method(**keys)


def test_groups_must_divide_the_batch():
    kind = method(negatives_among=5)
    with pytest.raises(UserError, match="method.negatives_among=5 must divide the batch of 16"):
        FewSteps(kind, rows, 1e-3).compiled(1)


def test_the_temperature_stays_within_its_bounds():
    for given, expected in ((0.0, 0.001), (0.07, 0.07), (3.0, 0.5)):
        assert float(method().clamp({"temperature": jnp.float32(given)})["temperature"]) == pytest.approx(expected)
