"""Retrieval in two stages: which pairs are matched, and what their order is afterwards."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from look_up import mesh_of
from made_source import MadeSource

from jaxclip import methods
from jaxclip.data import tokenizers
from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.evaluate.evaluator import Result
from jaxclip.evaluate.pairs import embedded_pairs
from jaxclip.evaluate.rescoring import match_scores, most_similar
from jaxclip.evaluate.two_stage_retrieval import Evaluator, reranked
from jaxclip.evaluate.zeroshot_retrieval import Evaluator as SingleStage

WORDS = ("red", "green", "blue", "left", "right", "dot", "of")
IMAGES = 11


@dataclasses.dataclass(frozen=True)
class Noise(MadeSource):
    """Images of noise with one or two captions; the last image has the captions of the first."""

    length: int = IMAGES

    def record(self, index: int) -> Record:
        rng = np.random.default_rng(index % (self.length - 1))
        captions = [" ".join(rng.choice(WORDS, 5)) for _ in range(1 + index % 2)]
        pixels = np.random.default_rng(100 + index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Record(pixels, tuple(captions), str(index))


@functools.cache
def model() -> tuple[Any, Any, Any]:
    tokenizer = tokenizers.train([*WORDS], 520)
    image = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
    text = {"vocab_size": 520, "context_length": 24, "width": 16, "layers": 2, "heads": 2, "stddev": 0.5}
    keys = {"name": "albef", "image": image, "text": text, "embed_dim": 8, "queue": 0, "mask_id": -1}
    method = methods.from_config(keys)
    return method, methods.init_variables(method, jax.random.key(0))[0], tokenizer


@functools.cache
def encoder(devices: int = 1, batch_size: int = 16) -> Encoder:
    method, _, tokenizer = model()
    return Encoder(method, mesh_of(devices), "float32", tokenizer, batch_size)


def run(k: int, devices: int = 1, batch_size: int = 16, **keys: Any) -> Result:
    return Evaluator("data", k=k, **keys).run(encoder(devices, batch_size), model()[1], Noise(), SkipLog(), None)


@functools.cache
def all_scores() -> tuple[np.ndarray, np.ndarray]:
    """The log odds of each image with each caption, computed pair by pair, and the captions' images."""
    _, params, tokenizer = model()
    bound = methods.bind(model()[0])(params)
    records = Noise().read(range(IMAGES))
    captions = [caption for record in records for caption in record.captions]
    owners = np.array([row for row, record in enumerate(records) for _ in record.captions])
    tokens, end = map(jnp.asarray, tokenizer(captions, 24))
    states = bound.text_states(tokens, end)
    images = bound.image_tokens(jnp.stack([record.image for record in records]))
    scores = [bound.match(jnp.repeat(image[None], len(captions), axis=0), states, end) for image in images]
    return np.asarray(jnp.stack(scores)), owners


def recall(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.mean(np.take_along_axis(right, order, axis=1).any(axis=1)))


def test_with_all_candidates_the_order_is_that_of_matching():
    scores, owners = all_scores()
    right = np.arange(IMAGES)[:, None] == owners
    metrics = run(100).metrics
    for k in (1, 5, 10):
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(recall(scores, right, k))
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(recall(scores.T, right.T, k))


def test_only_the_most_similar_candidates_are_ranked_anew():
    scores, owners = all_scores()
    pairs = embedded_pairs(encoder(), model()[1], Noise(), SkipLog())
    cosines = pairs.images @ pairs.texts.T
    right = np.arange(IMAGES)[:, None] == owners
    metrics = run(4).metrics
    for name, similar, matched, answers in (
        ("text", cosines, scores, right),
        ("image", cosines.T, scores.T, right.T),
    ):
        chosen = np.argsort(-similar, axis=1, kind="stable")[:, :4]
        taken = np.zeros_like(answers)
        np.put_along_axis(taken, chosen, True, axis=1)
        assert metrics[f"{name}_retrieval_recall@1"] == pytest.approx(recall(np.where(taken, matched, -99), answers, 1))
        # Whoever is not a candidate keeps its rank.
        assert metrics[f"{name}_retrieval_recall@5"] >= metrics[f"{name}_retrieval_recall@1"]
        found, alone = (metrics[f"{prefix}{name}_retrieval_recall@10"] for prefix in ("", "single_stage_"))
        assert found == pytest.approx(alone)


def test_embeddings_alone_rank_as_in_zero_shot_retrieval():
    alone = SingleStage("data").run(encoder(), model()[1], Noise(), SkipLog(), None).metrics
    metrics = run(3).metrics
    assert {f"single_stage_{name}": value for name, value in alone.items()}.items() <= metrics.items()


@pytest.mark.parametrize(("devices", "batch_size"), [(8, 16), (1, 4)])
def test_neither_devices_nor_batches_change_the_result(devices, batch_size):
    assert run(4, devices, batch_size).metrics == pytest.approx(run(4).metrics)


def test_images_with_one_caption_are_answers_to_each_other():
    """The captions of the first image are those of the last one."""
    alike, apart = (run(100, equal_captions=equal).metrics for equal in (True, False))
    scores, owners = all_scores()
    groups = np.where(np.arange(IMAGES) == IMAGES - 1, 0, np.arange(IMAGES))
    right = groups[:, None] == groups[owners]
    assert alike["image_retrieval_recall@1"] == pytest.approx(recall(scores.T, right.T, 1))
    assert alike["single_stage_image_retrieval_mean_rank"] < apart["single_stage_image_retrieval_mean_rank"]


def test_scores_are_those_of_the_pairs_that_are_asked_for():
    scores, _ = all_scores()
    captions = [caption for record in Noise().read(range(IMAGES)) for caption in record.captions]
    wanted = np.array([[0, 3], [0, 1], [2, 5], [9, 0], [10, 15]])
    given = (range(IMAGES), captions, wanted)
    found = match_scores(encoder(8, 8), model()[1], Noise(), SkipLog(), *given)
    np.testing.assert_allclose(found, scores[tuple(wanted.T)], rtol=1e-4, atol=1e-5)


def test_the_most_similar_keys_are_those_of_a_stable_sort():
    rng = np.random.default_rng(0)
    queries, keys = rng.integers(-2, 3, (700, 3)).astype(np.float32), rng.integers(-2, 3, (40, 3)).astype(np.float32)
    expected = np.argsort(-(queries @ keys.T), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(most_similar(mesh_of(8), queries, keys, 7), expected)


def test_a_score_that_is_no_number_is_the_last():
    scores = np.array([[np.nan, 0.5, 0.4], [0.2, 0.2, 0.1]])
    right = np.array([[True, False, False], [False, True, False]])
    assert reranked(scores, right, np.array([0, 1])).tolist() == [2, 1]


def test_the_report_lights_each_word_of_some_captions():
    examples = run(3).examples
    assert 5 <= len(examples) <= 10 and all(example.image.shape == (112, 112, 3) for example in examples)
    first = Noise().record(0)
    assert examples[0].text == first.captions[0]
    assert [part.text for part in examples[0].parts] == first.captions[0].split()
