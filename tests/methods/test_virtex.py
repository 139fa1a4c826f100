"""VirTex: captioning in both directions and its alternatives, generation, and the recipe."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_batch import drawn_batch

from configs import virtex
from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config, MeshConfig, OptimizerConfig
from jaxclip.context import Context
from jaxclip.data import tokenizers
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.losses.captioning import reversed_texts
from jaxclip.methods.virtex import Method
from jaxclip.model import Model
from jaxclip.parsing import parse
from jaxclip.step import Step

BATCH, LENGTH, WORDS = 8, 7, 50
IMAGE = {"name": "vit", "image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
TEXT = {"vocab_size": WORDS, "context_length": LENGTH, "width": 32, "heads": 2, "layers": 2, "drop": 0.0}
PRETEXTS = ("bicaptioning", "captioning", "masked_lm", "token_classification", "multilabel_classification")


def method(pretext: str = "bicaptioning", **text: Any) -> Method:
    keys = {"image": IMAGE, "text": TEXT | text, "pretext": pretext, "tags": 4}
    return methods.from_config({"name": "virtex", **keys})


@functools.cache
def texts() -> dict[str, jax.Array]:
    """Start 1, words, end 2, padding 0; one of the words is 0, too."""
    tokens = np.zeros((BATCH, LENGTH), np.int32)
    end = 2 + np.arange(BATCH) % (LENGTH - 2)
    rng = np.random.default_rng(0)
    for row, last in enumerate(end):
        tokens[row, : last + 1] = [1, *rng.integers(4, WORDS, last - 1), 2]
    tokens[5, 1] = 0
    images = jnp.asarray(rng.integers(0, 256, (BATCH, 16, 16, 3)), jnp.uint8)
    tags = jnp.asarray(np.vstack([np.zeros(4), rng.integers(0, 2, (BATCH - 1, 4))]), jnp.float32)
    return {"image": images, "text": jnp.asarray(tokens), "text_end": jnp.asarray(end, jnp.int32), "tags": tags}


def rows(kind: Method) -> dict[str, jax.Array]:
    names = ("image", "tags") if "tags" in kind.inputs() else ("image", "text", "text_end")
    return {name: texts()[name] for name in names}


@functools.cache
def params(kind: Method) -> Any:
    return methods.init_variables(kind, jax.random.key(3))[0]


@functools.partial(jax.jit, static_argnums=0)
def loss(kind: Method, variables: Any, batch: Any, key: Any = None) -> Any:
    model = methods.bind(kind)(variables)
    return kind.loss(model, batch, Context(model=model, key=key))


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_at_the_start_every_word_or_tag_is_as_probable_as_any_other(pretext):
    kind = method(pretext)
    found, _ = loss(kind, params(kind), rows(kind))
    expected = {"bicaptioning": 2 * np.log(WORDS), "multilabel_classification": np.log(4)}
    assert float(found) == pytest.approx(expected.get(pretext, np.log(WORDS)), rel=0.03)


def test_both_losses_are_means_over_tokens_and_their_sum_is_the_loss():
    """From the states, in NumPy: unknown words, which have the padding's id, count, and the padding does not."""
    kind = method()
    total, parts = loss(kind, params(kind), rows(kind))
    model, ctx = methods.bind(kind)(params(kind)), Context()
    tokens, end = np.asarray(texts()["text"]), np.asarray(texts()["text_end"])
    found = model.states(jnp.asarray(tokens), jnp.asarray(end), model.tokens(texts()["image"], ctx), ctx)
    table = np.asarray(params(kind)["embedding"]["token_embedding"], np.float64)
    for direction, (states, _) in found.items():
        logits = np.asarray(states, np.float64) @ table.T
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = []
        for row, last in enumerate(end):
            text = tokens[row, : last + 1] if direction == "forward" else tokens[row, last::-1]
            losses += [-logits[row, place, text[place + 1]] for place in range(last)]
        assert len(losses) == end.sum()
        assert float(parts[f"{direction}_loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(total) == pytest.approx(float(parts["forward_loss"] + parts["backward_loss"]), rel=1e-6)


def test_what_follows_the_end_changes_nothing():
    kind, batch = method(), rows(method())
    places = jnp.arange(LENGTH) > batch["text_end"][:, None]
    changed = batch | {"text": jnp.where(places, 9, batch["text"])}
    np.testing.assert_array_equal(loss(kind, params(kind), batch)[0], loss(kind, params(kind), changed)[0])


def test_backward_is_forward_of_the_reversed_text():
    kind = method()
    twins = params(kind) | {"backward_decoder": params(kind)["decoder"]}
    batch = rows(kind)
    mirrored = batch | {"text": reversed_texts(batch["text"], batch["text_end"])}
    (_, found), (_, expected) = loss(kind, twins, batch), loss(kind, twins, mirrored)
    assert float(found["backward_loss"]) == pytest.approx(float(expected["forward_loss"]), rel=1e-6)
    assert float(found["backward_loss"]) != pytest.approx(float(found["forward_loss"]), rel=1e-4)


def test_captioning_alone_is_the_forward_half():
    both, one = method(), method("captioning")
    half = {name: leaf for name, leaf in params(both).items() if name != "backward_decoder"}
    assert jax.tree.map(jnp.shape, half) == jax.tree.map(jnp.shape, params(one))
    expected = loss(both, params(both), rows(both))[1]["forward_loss"]
    assert float(loss(one, half, rows(one))[0]) == pytest.approx(float(expected), rel=1e-6)


def test_words_are_classified_by_the_mean_over_a_captions_distinct_words():
    kind = method("token_classification")
    batch = rows(kind)
    batch["text"] = batch["text"].at[4, 2].set(batch["text"][4, 1])  # The same word twice.
    model = methods.bind(kind)(params(kind))
    scores = np.asarray(model.classifier(model.features(batch["image"])), np.float64)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    words = [set(row[1:last].tolist()) for row, last in zip(np.asarray(batch["text"]), batch["text_end"], strict=True)]
    assert len(words[4]) == int(batch["text_end"][4]) - 2
    expected = np.mean([-np.mean(scores[row, sorted(found)]) for row, found in enumerate(words)])
    assert float(loss(kind, params(kind), batch)[0]) == pytest.approx(expected, rel=1e-5)


def test_tags_are_classified_likewise_and_a_record_without_any_does_not_count():
    kind = method("multilabel_classification")
    model = methods.bind(kind)(params(kind))
    scores = np.asarray(model.classifier(model.features(texts()["image"])), np.float64)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    tags = np.asarray(texts()["tags"]) > 0
    expected = np.mean([-np.mean(row[has]) for row, has in zip(scores, tags, strict=True) if has.any()])
    assert not tags[0].any()
    assert float(loss(kind, params(kind), rows(kind))[0]) == pytest.approx(expected, rel=1e-5)


def test_masks_are_random_in_training_and_each_texts_own_in_validation():
    kind, batch = method("masked_lm"), rows(method("masked_lm"))
    first, second = (float(loss(kind, params(kind), batch, jax.random.key(n))[0]) for n in (0, 1))
    assert first != second
    order = jnp.array([3, 1, 0, 2, 7, 6, 5, 4])
    shuffled = {name: leaf[order] for name, leaf in batch.items()}
    expected = float(loss(kind, params(kind), batch)[0])
    assert float(loss(kind, params(kind), shuffled)[0]) == pytest.approx(expected, rel=1e-6)


@functools.cache
def steps(devices: int, microbatches: int) -> list[dict[str, float]]:
    mesh = sharding.create(MeshConfig(fsdp=min(2, devices)), jax.devices()[:devices])
    kind = method("captioning", drop=0.1, layers=1)
    sgd = optimizer.create(OptimizerConfig(learning_rate=0.1, warmup_steps=0, name="sgd", lookahead=(2, 0.5)), 100)
    step = Step(kind, sgd, mesh, precision="float32", microbatches=microbatches)
    state = step.init(3)
    batch = jax.device_put(drawn_batch(kind, 16), sharding.batch_sharding(mesh))
    found = []
    for _ in range(2):
        state, metrics = step.train(state, batch)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def test_losses_depend_on_neither_devices_nor_micro_batches():
    for found, expected in zip(steps(8, 2), steps(1, 1), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_masks_depend_on_neither_devices_nor_micro_batches():
    kind = method("masked_lm", drop=0.1)
    batch, variables, found = drawn_batch(kind, 16), params(kind), []
    for devices, microbatches in ((1, 1), (8, 2)):
        mesh = sharding.create(MeshConfig(), jax.devices()[:devices])

        @jax.jit
        def value(batch, mesh=mesh, microbatches=microbatches):
            model = methods.bind(kind)(variables)
            ctx = Context(model=model, mesh=mesh, key=jax.random.key(1), microbatches=microbatches)
            return kind.loss(model, batch, ctx)[0]

        found.append(float(value(jax.device_put(batch, sharding.batch_sharding(mesh)))))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@functools.cache
def captioner() -> Any:
    """A model that is so unlike its start that its captions differ from image to image."""
    kind = method()
    rng = np.random.default_rng(5)
    drawn = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), params(kind)
    )
    return methods.bind(kind)(drawn)


def test_a_caption_depends_on_its_image_and_on_no_other():
    model = captioner()
    caption = jax.jit(lambda images: model.caption(images, start=1, end=2, beams=3))
    images = texts()["image"]
    found = np.asarray(caption(images))
    assert found.shape == (BATCH, LENGTH) and np.all(found[:, 0] == 1)
    assert len({tuple(row) for row in found}) > 2
    np.testing.assert_array_equal(caption(images[::-1]), found[::-1])


def test_drawn_captions_depend_on_seed_and_image_alone():
    model = captioner()

    @functools.partial(jax.jit, static_argnums=1)
    def caption(images, seed):
        return model.caption(images, start=1, end=2, nucleus=0.9, seed=seed)

    images = texts()["image"]
    found = np.asarray(caption(images, 0))
    np.testing.assert_array_equal(caption(images[::-1], 0), found[::-1])
    assert np.any(np.asarray(caption(images, 1)) != found)


def test_attention_is_one_distribution_over_the_image_for_each_word():
    tokens = texts()["text"]
    model = captioner()
    weights = jax.jit(model.attention)(texts()["image"], tokens)
    assert weights.shape == (BATCH, LENGTH - 1, 5)  # Four patches and the class token.
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


@functools.cache
def opened() -> Model:
    """A model with a tokenizer, as `jaxclip.load` gives one."""
    tokenizer = tokenizers.train(["a red star on a dark field", "two blue rings"] * 4, 600)
    kind = method(vocab_size=tokenizer.vocab_size)
    rng = np.random.default_rng(5)
    drawn = {
        name: jax.tree.map(lambda leaf: leaf + 0.3 * jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), tree)
        for name, tree in params(kind).items()
    }
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    return Model(None, drawn, {}, Encoder(kind, mesh, "float32", tokenizer, batch_size=4))


def test_a_loaded_model_captions_images_whatever_their_number():
    images = list(np.asarray(texts()["image"]))
    found = opened().caption(images, beams=2)
    assert len(found) == BATCH and all(isinstance(text, str) for text in found)
    assert not any("|>" in text for text in found)  # No start or end token is spelled out.
    assert opened().caption(images[5], beams=2) == found[5:6]
    assert opened().caption(images[:1], nucleus=0.9, seed=3) == opened().caption(images[0], nucleus=0.9, seed=3)
    for wrong in ({"beams": 0}, {"per_beam": 0}, {"nucleus": -0.1}, {"nucleus": 1.5}, {"seed": -1}):
        with pytest.raises(UserError, match="beams must be at least 1"):
            opened().caption(images[0], **wrong)


def test_a_model_with_more_rows_than_words_writes_words_alone():
    """As many as a small training set gives a vocabulary that was asked to be larger."""
    small = Vocabulary(vocab_size=20)
    small.decode = lambda tokens: " ".join(map(str, tokens))
    encoder = Encoder(opened().method, sharding.create(MeshConfig(), jax.devices()[:1]), "float32", small)
    model = Model(None, opened().evaluation_parts()[1], {}, encoder)
    written = model.caption(list(np.asarray(texts()["image"])), beams=2)
    assert all(int(word) < 20 for text in written for word in text.split())


def test_a_model_that_writes_no_captions_says_so():
    kind = method("token_classification")
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    model = Model(None, params(kind), {}, Encoder(kind, mesh, "float32", None))
    with pytest.raises(UserError, match="caption needs caption, which method virtex does not have"):
        model.caption(np.zeros((16, 16, 3), np.uint8))


# Parameters of the textual head of the textual head with both directions and one layer, in millions.
@pytest.mark.parametrize(("width", "millions"), [(512, 14.6), (768, 28.2), (1024, 46.0), (2048, 159.0)])
def test_the_heads_have_the_published_sizes(width, millions):
    recipe = virtex.get_config()
    recipe.method.text.update({"width": width, "heads": width // 64})
    shapes, _ = methods.abstract_variables(methods.from_config(recipe.method.to_dict()))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert counts.pop("image") == 25_557_032 - 2_049_000  # torchvision's ResNet-50 without its classifier
    per_decoder = 16 * width**2 + 19 * width
    embedded = 10_000 * width + 30 * width + 2 * width
    expected = 2 * per_decoder + embedded + 2048 * width + width + 10_000
    assert sum(counts.values()) == expected
    assert round(expected / 1e6, 1) == millions


def test_the_recipe_has_two_rates_and_decays_what_the_paper_does():
    recipe = virtex.get_config()
    recipe.data.train = "shapes"
    config = parse(Config, recipe).optimizer
    shapes, _ = methods.abstract_variables(methods.from_config(recipe.method.to_dict()))
    names = [optimizer.name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    optimizer.check_groups(shapes, config.groups)
    for name in names:
        group = optimizer.group_of(name, config.groups)
        assert config.learning_rate * group.rate == pytest.approx(0.2 if name.startswith("image/") else 1e-3)
        # kdexd/virtex, config.py: ".*textual.(embedding|transformer).*(norm.*|bias)".
        textual_gain = re.match(r"(embedding|decoder|backward_decoder)/.*(scale|bias)$", name)
        assert optimizer.weight_decay(name, config) == (0 if textual_gain else 1e-4)
    assert {"image/bn1/scale", "output_bias", "projection/bias", "decoder/blocks/ln_1/scale"} <= set(names)


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_the_recipe_is_one_of_every_pretext(pretext):
    recipe = virtex.get_config()
    recipe.data.train, recipe.method.pretext = "shapes", pretext
    shapes, _ = methods.abstract_variables(methods.from_config(recipe.method.to_dict()))
    optimizer.check_groups(shapes, parse(Config, recipe).optimizer.groups)


def test_a_pool_that_captions_do_not_train_is_refused():
    keys = {"name": "virtex", "text": TEXT, "image": IMAGE | {"pool": "map"}}
    with pytest.raises(UserError, match="image.pool='map' would not be trained"):
        methods.from_config(keys)
    methods.from_config(keys | {"pretext": "token_classification"})


class Vocabulary:
    def __init__(self, vocab_size: int = WORDS, start_id: Any = 1, end_id: Any = 2, mask_id: Any = 3):
        self.vocab_size, self.start_id, self.end_id, self.mask_id = vocab_size, start_id, end_id, mask_id


@pytest.mark.parametrize(
    ("pretext", "vocabulary", "said"),
    [
        ("captioning", Vocabulary(WORDS + 1), "set config.method.text.vocab_size=51"),
        ("captioning", Vocabulary(start_id=None), "no start or no end token"),
        ("masked_lm", Vocabulary(mask_id=None), "method.mask_id=3, but the vocabulary has no mask token"),
        ("masked_lm", Vocabulary(mask_id=4), "method.mask_id=3, but the vocabulary has the mask token 4"),
    ],
)
def test_a_vocabulary_that_lacks_what_is_needed_is_refused(pretext, vocabulary, said):
    with pytest.raises(UserError, match=said):
        method(pretext).check(vocabulary)
    method("captioning").check(Vocabulary(mask_id=None))


def test_a_wrong_pretext_is_named():
    with pytest.raises(UserError, match=r"config.method.pretext.*'rotation'"):
        method("rotation")
