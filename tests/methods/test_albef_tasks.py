"""What ALBEF is fine-tuned for: answers to questions, entailment, statements about two images."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few_steps import FewSteps
from starting import source, started

from configs import albef, albef_easy_vqa, albef_entailment, albef_nlvr2, albef_retrieval, albef_vqa
from jaxclip import methods
from jaxclip.config import Config
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.parsing import parse

BATCH, WORDS, LENGTH, ANSWERS, ANSWER = 8, 30, 8, 2, 5
IMAGE = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
TEXT = {"vocab_size": WORDS, "context_length": LENGTH, "width": 16, "layers": 3, "lower": 1, "heads": 2, "stddev": 0.2}


def method(name: str, **keys: Any) -> Any:
    return methods.from_config({"name": name, "image": IMAGE, "text": TEXT, **keys})


VQA = method("albef_vqa", answer_length=ANSWER, answers=ANSWERS, distillation_steps=4, momentum=0.9)
ENTAILMENT = method("albef_entailment", momentum=0.9)
NLVR2 = method("albef_nlvr2", momentum=0.9)
ASSIGNMENT = method("albef_nlvr2", assigns_texts=True, classes=3, among=4)


def texts(rng: np.random.Generator, *shape: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with start 1 and end 2, and the places of the ends."""
    end = rng.integers(2, length, shape)
    tokens = np.where(np.arange(length) < end[..., None], rng.integers(4, WORDS, (*shape, length)), 0)
    tokens[..., 0] = 1
    np.put_along_axis(tokens, end[..., None], 2, axis=-1)
    return tokens.astype(np.int32), end.astype(np.int32)


def rows(kind: Any, number: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(number)
    found: dict[str, Any] = {}
    for name in kind.inputs():
        if name in ("image", "second"):
            found[name] = rng.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8)
        elif name == "text":
            found["text"], found["text_end"] = texts(rng, BATCH, length=LENGTH)
        elif name == "answers":
            found["answers"], found["answers_end"] = texts(rng, BATCH, ANSWERS, length=ANSWER)
            found["answers_weight"] = rng.choice([0.0, 0.3, 0.7], (BATCH, ANSWERS)).astype(np.float32)
        else:
            found["label"] = rng.integers(-1, kind.classes, BATCH).astype(np.int32)
    return {name: jnp.asarray(value) for name, value in found.items()}


FEW = {kind: FewSteps(kind, functools.partial(rows, kind), learning_rate=1e-2) for kind in (VQA, NLVR2)}


@functools.cache
def params(kind: Any) -> Any:
    return methods.init_variables(kind, jax.random.key(0))[0]


def model(kind: Any, variables: Any = None) -> Any:
    return methods.bind(kind)(params(kind) if variables is None else variables)


def slowly(kind: Any, seed: int) -> Any:
    """A memory whose copy has other weights than the model."""
    return {"slow": methods.init_variables(kind, jax.random.key(seed))[0]}


@functools.partial(jax.jit, static_argnums=0)
def loss(kind: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    ctx = Context(model=model(kind), memory=methods.bind_memory(kind)(slowly(kind, 5)))
    return kind.loss(ctx.model, batch, ctx)


@functools.partial(jax.jit, static_argnums=0)
def judged(kind: Any, variables: Any, images: tuple[jax.Array, ...], text: jax.Array, end: jax.Array) -> jax.Array:
    bound = model(kind, variables)
    return bound.judge(jnp.stack([bound.image_tokens(image) for image in images], axis=1), text, end)


@functools.partial(jax.jit, static_argnums=0)
def answered(kind: Any, variables: Any, batch: Any) -> jax.Array:
    """The logits of the words of given answers."""
    bound = model(kind, variables)
    states = bound.question_states(bound.image_tokens(batch["image"]), batch["text"], batch["text_end"])
    return bound.word_logits(bound.answer_states(states, batch["text_end"], batch["answers"], batch["answers_end"]))


def shares(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------- entailment


@pytest.mark.parametrize("kind", [ENTAILMENT, NLVR2], ids=["one image", "two images"])
def test_the_loss_has_the_copys_share_of_the_classes(kind):
    batch = rows(kind, 1)
    logits = {}
    for name, variables in (("model", params(kind)), ("slow", slowly(kind, 5)["slow"])):
        images = tuple(batch[name] for name in ("image", "second") if name in batch)
        logits[name] = shares(judged(kind, variables, images, batch["text"], batch["text_end"]))
    labels = np.asarray(batch["label"])
    known = labels >= 0
    one_hot = np.eye(kind.classes)[np.maximum(labels, 0)]
    targets = 0.6 * one_hot + 0.4 * logits["slow"]
    expected = -np.sum(targets * np.log(logits["model"]), axis=1)[known].mean()
    found, metrics = loss(kind, batch)
    assert 0 < known.sum() < BATCH and float(found) == pytest.approx(expected, rel=1e-4)
    hits = (logits["model"].argmax(axis=1) == labels)[known]
    assert float(metrics["accuracy"]) == pytest.approx(hits.mean())


def test_what_is_behind_a_sentence_is_not_read():
    batch = rows(ENTAILMENT, 1)
    behind = jnp.where(jnp.arange(LENGTH) > batch["text_end"][:, None], 9, batch["text"])
    ask = (ENTAILMENT, params(ENTAILMENT), (batch["image"],))
    found = [judged(*ask, text, batch["text_end"]) for text in (batch["text"], behind)]
    np.testing.assert_allclose(*found, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- two images


def test_blocks_of_both_images_share_keys_and_values_and_nothing_else():
    first, second = params(NLVR2)["text"]["upper"]["blocks"], params(NLVR2)["second"]["blocks"]
    assert set(first) - set(second) == {"cross_kv_kernel", "cross_kv_bias"}


def test_the_first_image_is_not_the_second():
    batch = rows(NLVR2, 2)
    first, second = batch["image"], batch["second"]
    # At the start the blocks are alike, and so exchanging the images changes only the order in which they are read.
    found = [
        np.asarray(judged(NLVR2, params(NLVR2), pair, batch["text"], batch["text_end"]))
        for pair in ((first, second), (second, first), (first, first), (second, second))
    ]
    for other in found[1:]:
        assert np.abs(found[0] - other).max() > 1e-4


def test_texts_are_assigned_to_the_first_image_the_second_or_neither():
    batch = rows(ASSIGNMENT, 3)
    ctx = Context(key=jax.random.key(1))
    found = {name: np.asarray(value) for name, value in ASSIGNMENT._assigned(batch, ctx).items()}
    assert set(found["label"].tolist()) == {0, 1, 2}
    for row, label in enumerate(found["label"]):
        group = row // 4 * 4
        behind = [group + (row - group + step) % 4 for step in range(3)]
        np.testing.assert_array_equal(found["second"][row], batch["image"][behind[1]])
        np.testing.assert_array_equal(found["text"][row], batch["text"][behind[label]])
        assert found["text_end"][row] == batch["text_end"][behind[label]]


def test_text_assignment_needs_three_records():
    with pytest.raises(UserError, match="method.among=2 must divide the batch of 8, and be at least 3"):
        method("albef_nlvr2", assigns_texts=True, classes=3, among=2)._assigned(rows(ASSIGNMENT, 0), Context())


# -------------------------------------------------------------------------------------------------------------- answers


def test_answers_count_by_their_weights():
    batch = rows(VQA, 1)
    totals = {}
    for name, variables in (("model", params(VQA)), ("slow", slowly(VQA, 5)["slow"])):
        totals[name] = shares(answered(VQA, variables, batch))
    answers, weights = np.asarray(batch["answers"]), np.asarray(batch["answers_weight"])
    expected = 0.0
    for row in range(BATCH):
        for number in range(ANSWERS):
            for place in range(int(batch["answers_end"][row, number])):
                target = np.eye(WORDS)[answers[row, number, place + 1]]
                target = 0.6 * target + 0.4 * totals["slow"][row, number, place]
                logs = np.log(totals["model"][row, number, place])
                expected -= weights[row, number] * np.sum(target * logs) / BATCH
    assert float(loss(VQA, batch)[0]) == pytest.approx(expected, rel=1e-4)


def test_the_most_probable_answer_of_a_list_is_found():
    """Of 11 answers, all compared: the one with the largest product of its words' probabilities."""
    batch = rows(VQA, 2)
    listed, ends = map(jnp.asarray, texts(np.random.default_rng(0), 11, length=ANSWER))

    @functools.partial(jax.jit, static_argnums=0)
    def best(k: int) -> jax.Array:
        bound = model(VQA)
        ask = (bound.image_tokens(batch["image"]), batch["text"], batch["text_end"])
        return bound.answer(*ask, listed, ends, k=k)

    found, first_only = (np.asarray(best(k)) for k in (11, 1))
    every = {name: jnp.broadcast_to(part[None], (BATCH, *part.shape)) for name, part in
             (("answers", listed), ("answers_end", ends))}  # fmt: skip
    words = np.log(shares(answered(VQA, params(VQA), {**batch, **every})))
    scores = np.array(
        [[sum(words[row, n, place, listed[n, place + 1]] for place in range(ends[n])) for n in range(11)]
         for row in range(BATCH)]
    )  # fmt: skip
    np.testing.assert_array_equal(found, scores.argmax(axis=1))
    begins = words[:, 0, 0][:, listed[:, 1]]
    np.testing.assert_allclose(begins[np.arange(BATCH), first_only], begins.max(axis=1), rtol=1e-5)
    assert not np.array_equal(found, first_only)


def test_a_word_of_an_answer_does_not_see_those_behind_it():
    batch = rows(VQA, 1)
    changed = {**batch, "answers": batch["answers"].at[:, :, 3].set(9)}
    found = [np.asarray(answered(VQA, params(VQA), one)) for one in (batch, changed)]
    np.testing.assert_allclose(found[0][:, :, :3], found[1][:, :, :3], atol=1e-5)
    assert np.abs(found[0] - found[1])[:, :, 3].max() > 1e-3


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", [VQA, NLVR2], ids=["answers", "two images"])
def test_training_learns(kind):
    few = FEW[kind]
    batch, state, losses = rows(kind, 0), few.fresh(few.step_on(1)), []
    for _ in range(25):
        state, metrics = few.compiled(1)(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [VQA, NLVR2], ids=["answers", "two images"])
def test_losses_do_not_depend_on_the_devices(kind):
    (_, found), (_, expected) = FEW[kind].steps(8), FEW[kind].steps(1)
    for metrics, wanted in zip(found, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-3, abs=1e-4)


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("recipe", [albef_retrieval, albef_vqa, albef_entailment, albef_nlvr2, albef_easy_vqa])
def test_the_recipes_are_complete(recipe):
    config = recipe.get_config()
    config.data.train = "x.tar"
    config = parse(Config, config)
    assert methods.from_config(config.method).inputs()
    # Fine-tuning takes a part of a pretrained model; the toy needs none.
    assert bool(config.init_only) == (recipe is not albef_easy_vqa)


def small(recipe: Any) -> dict[str, Any]:
    """The method of a recipe with its lengths and sizes of images, and narrow towers."""
    keys = recipe.get_config().method.to_dict()
    keys["image"] |= {"width": 16, "layers": 1, "heads": 2}
    keys["text"] |= {"vocab_size": WORDS, "width": 16, "layers": 2, "heads": 2}
    return keys


@pytest.mark.parametrize("recipe", [albef_retrieval, albef_vqa, albef_entailment, albef_nlvr2])
def test_fine_tuning_starts_from_a_pretrained_model(recipe, tmp_path):
    """At 384 pixels instead of 256, with all that the recipe says it takes."""
    path, theirs = source(tmp_path, "jaxclip", small(albef))
    found, fresh, _ = started(path, small(recipe), recipe.get_config().init_only, tokenizer=None)
    new = {name for name in found if np.array_equal(found[name], fresh[name])}
    assert all(name.startswith(("classifier/", "words/")) for name in new)
    for name in set(found) & set(theirs) - new:
        if name != "image/positions":
            np.testing.assert_array_equal(found[name], theirs[name])


def test_what_a_pretrained_model_lacks_starts_from_its_fusion():
    assert VQA.source_path("decoder/upper/blocks/qkv_kernel") == "text/upper/blocks/qkv_kernel"
    assert NLVR2.source_path("second/blocks/ln_1/scale") == "text/upper/blocks/ln_1/scale"
    for kind in (VQA, NLVR2, ENTAILMENT):
        assert kind.source_path("text/lower/blocks/qkv_kernel") == "text/lower/blocks/qkv_kernel"


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("albef_vqa", {"answer_length": 2}, "answer_length=2 must be at least 3"),
        ("albef_vqa", {"distillation": 2.0}, "distillation=2.0 must be at least 0 and at most 1"),
        ("albef_entailment", {"classes": 1}, "classes=1 must be at least 2"),
        ("albef_nlvr2", {"assigns_texts": True}, "classes=2 must be 3 with assigns_texts=True"),
    ],
)
def test_every_wrong_key_is_named(name, keys, said):
    with pytest.raises(UserError, match=said):
        method(name, **keys)
