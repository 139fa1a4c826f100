"""Evaluation of generated captions, and what the report shows of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set

from jaxclip import methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.data import tokenizers
from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.caption_metrics import bleu, cider
from jaxclip.evaluate.captioning import Evaluator
from jaxclip.inputs import Image

WORDS = ["<pad>", "<s>", "</s>", "a", "red", "blue", "star", "ring", "fish", "dark"]


class Vocabulary:
    vocab_size, start_id, end_id, pad_id, mask_id = len(WORDS), 1, 2, 0, None

    def __call__(self, texts, context_length):
        raise NotImplementedError

    def to_json(self):
        raise NotImplementedError

    def decode(self, tokens):
        return " ".join(WORDS[i] for i in tokens if i > 2)


class Captions(LookUp):
    """An encoder whose images have captions that are given."""

    def __init__(self, captions, references, labels=None, tokenizer=None, digests=None):
        rows = [[1, *map(WORDS.index, caption.split()), 2, 2, 2, 2][:6] for caption in captions]
        known = embedded_set(rows, labels=labels, captions=references)
        known = dataclasses.replace(known, outputs=np.array(rows, np.int32), digests=digests or known.digests)
        super().__init__({}, known)
        self.tokenizer = tokenizer or Vocabulary()
        self.image = Image(8)
        self.asked: dict[str, Any] = {}

    def source(self, *given, function, **options):
        self.asked = options
        return super().source(*given, function=function)

    def has(self, *names):
        return True

    def __call__(self, name, variables, images, tokens):
        """Each word is seen at the place of its number."""
        weights = np.zeros((len(tokens), tokens.shape[1] - 1, 4), np.float32)
        weights[:, np.arange(tokens.shape[1] - 1), np.arange(tokens.shape[1] - 1) % 4] = 1
        return weights


class White(NoRecords):
    def read(self, ids):
        return [Record(np.full((8, 8, 3), 255, np.uint8), ("x",), str(i)) for i in ids]


def run(encoder, *names, **keys):
    return Evaluator("data", **keys).run(encoder, None, White(*(names or ("red star", "blue ring"))), SkipLog(), None)


CAPTIONS = ["a red star", "a blue star", "a dark blue ring"]
REFERENCES = [["A red star.", "red star"], ["a blue ring"], ["a ring"]]


def test_captions_are_compared_with_all_of_their_image():
    result = run(Captions(CAPTIONS, REFERENCES, labels=[0, 1, 1]))
    assert result.metrics["cider"] == cider(CAPTIONS, REFERENCES)
    assert [result.metrics[f"bleu_{n}"] for n in range(1, 5)] == list(bleu(CAPTIONS, REFERENCES))
    assert result.metrics["exact_match"] == pytest.approx(1 / 3)
    assert result.metrics["names_class"] == pytest.approx(2 / 3)
    assert result.summary.endswith("class named 66.7%")


def test_a_part_of_a_word_names_no_class():
    encoder = Captions(["a red star"], [["x"]], labels=[0])
    assert run(encoder, "red star").metrics["names_class"] == 1
    assert run(encoder, "red sta").metrics["names_class"] == 0


def test_without_classes_there_is_no_share_of_them():
    result = run(Captions(CAPTIONS, REFERENCES))
    assert result.metrics["names_class"] is None and "class" not in result.summary


def test_an_image_without_a_caption_is_left_out():
    result = run(Captions([*CAPTIONS, "a fish"], [*REFERENCES, []]))
    assert result.metrics["cider"] == cider(CAPTIONS, REFERENCES)
    with pytest.raises(UserError, match="no image has a caption"):
        run(Captions(["a fish"], [[]]))


def test_the_search_or_the_draws_are_asked_for_as_configured():
    encoder = Captions(CAPTIONS, REFERENCES)
    run(encoder, beams=3)
    ids = {"start": 1, "end": 2, "words": len(WORDS)}
    assert encoder.asked == {**ids, "beams": 3, "per_beam": 2, "nucleus": 0.0, "seed": 0}
    run(encoder, nucleus=0.9, seed=4)
    assert encoder.asked == {**ids, "beams": 5, "per_beam": 2, "nucleus": 0.9, "seed": 4}


def test_records_of_the_same_image_are_one_image_with_all_captions():
    """As a table with a row for each caption has them."""
    captions, references = ["a red star", *CAPTIONS], [["A red star."], ["red star"], *REFERENCES[1:]]
    repeated = Captions(captions, references, digests=["x", "x", "y", "z"])
    assert run(repeated).metrics == run(Captions(CAPTIONS, REFERENCES)).metrics


class Records(NoRecords):
    def __init__(self, records):
        super().__init__("star", "ring")
        self.records = records

    def __len__(self):
        return len(self.records)

    def read(self, ids):
        return [self.records[i] for i in ids]


@pytest.mark.parametrize("devices", [1, 8])
def test_a_real_model_is_evaluated_with_its_words_attention(devices):
    tokenizer = tokenizers.train(["a red star on a dark field", "two blue rings"] * 4, 600)
    tower = {"width": 32, "layers": 1, "heads": 2}
    image = {"name": "vit", "image_size": 16, "patch_size": 8, **tower}
    text = {"vocab_size": tokenizer.vocab_size, "context_length": 6, **tower}
    kind = methods.from_config({"name": "virtex", "image": image, "text": text})
    params, _ = methods.init_variables(kind, jax.random.key(0))
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    encoder = Encoder(kind, mesh, "float32", tokenizer, batch_size=8)
    records = [Record(np.full((20, 20, 3), 12 * i, np.uint8), (f"image {i}",), str(i), label=i % 2) for i in range(11)]
    result = Evaluator("data", beams=2).run(encoder, params, Records(records), SkipLog(), None)
    assert len(result.examples) == 10 and all(example.parts for example in result.examples)
    assert result.metrics["names_class"] == 0


def test_each_word_is_shown_with_the_place_that_it_attended_to():
    example = run(Captions(CAPTIONS, REFERENCES)).examples[1]
    assert example.text == "a blue star — of the data: a blue ring"
    assert [part.text for part in example.parts] == ["a", "blue", "star"]
    for number, part in enumerate(example.parts):
        quarters = part.image[16::80, 16::80, 0].ravel()  # One pixel inside each quarter.
        assert np.argmax(quarters) == number and quarters[number] > 240
        assert np.all(np.delete(quarters, number) < 60)


def test_a_vocabulary_without_start_or_end_is_refused():
    tokenizer = Vocabulary()
    tokenizer.start_id = None
    with pytest.raises(UserError, match="a vocabulary with a start and an end token"):
        run(Captions(CAPTIONS, REFERENCES, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"beams": 0}, "beams=0 must be at least 1"), ({"nucleus": 1.5}, "nucleus=1.5"), ({"seed": -1}, "seed=-1")],
)
def test_wrong_keys_are_named(keys, said):
    with pytest.raises(UserError, match=said):
        Evaluator("data", **keys)
