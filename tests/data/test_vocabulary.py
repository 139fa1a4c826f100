"""The choice of a recipe's tokenizer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_source import MadeSource

from jaxclip.config import DataConfig
from jaxclip.data import tokenizers, vocabulary
from jaxclip.data.record import Question, Record, Skip
from jaxclip.errors import UserError
from jaxclip.inputs import Answers, Image, Text


@dataclasses.dataclass(frozen=True)
class Numbered(MadeSource):
    """A source of numbered captions, of which every seventh record cannot be read."""

    def record(self, index: int) -> Record | Skip:
        if index % 7 == 6:
            return Skip("unreadable shard", str(index))
        return Record(np.zeros((2, 2, 3), np.uint8), (f"number {index}",), str(index))


INPUTS = {"image": Image(8), "text": Text(8)}


def test_a_vocabulary_is_trained_from_captions_all_over_the_source():
    source = Numbered(1000)
    assert vocabulary.caption_sample(source, ()) == [f"number {i}" for i in range(1000) if i % 7 != 6]
    sample = [int(caption.removeprefix("number ")) for caption in vocabulary.caption_sample(source, (), limit=10)]
    assert sample == [i * 111 for i in range(10) if i * 111 % 7 != 6]


def test_a_vocabulary_is_trained_on_captions_in_their_templates():
    found = vocabulary.caption_sample(Numbered(1), ("a photo of {c}.", "{c}"))
    assert found == ["a photo of number 0.", "number 0"]


@dataclasses.dataclass(frozen=True)
class Asked(MadeSource):
    """A source of questions without captions."""

    def record(self, index: int) -> Record | Skip:
        question = Question(f"question {index}", (("left", 0.5), ("right", 0.5)))
        return Record(np.zeros((2, 2, 3), np.uint8), (), str(index), questions=(question,))


def test_a_vocabulary_is_trained_on_questions_and_answers_if_the_method_takes_them():
    assert vocabulary.caption_sample(Asked(2), ()) == []
    expected = ["question 0", "left", "right", "question 1", "left", "right"]
    assert vocabulary.caption_sample(Asked(2), ("a {c}",), questions=True) == expected
    config = DataConfig("given", train_vocabulary=560)
    for kinds in ({"asked": Text(8, field="question")}, {"answers": Answers(8, 2)}):
        tokenizer = vocabulary.tokenizer_of(kinds, config, Asked(50))
        assert tokenizer is not None and tokenizer(["left"], 8)[1].tolist() == [2]  # one token, then the end


def test_a_saved_tokenizer_goes_before_a_vocabulary():
    saved = tokenizers.train(["one two three"], 514)
    missing = DataConfig("given", vocabulary="/no/such/file.gz")
    found = vocabulary.tokenizer_of(INPUTS, missing, Numbered(5), saved.to_json())
    assert found is not None and found.to_json() == saved.to_json()
    with pytest.raises(UserError, match="file.gz"):
        vocabulary.tokenizer_of(INPUTS, missing, Numbered(5))
    trained = vocabulary.tokenizer_of(INPUTS, DataConfig("given", train_vocabulary=520), Numbered(50))
    assert trained is not None and trained.vocab_size <= 520
    masked = vocabulary.tokenizer_of(
        INPUTS, DataConfig("given", train_vocabulary=40, vocabulary_form="sentencepiece"), Numbered(50)
    )
    assert masked is not None and masked.mask_id == 3 and masked.vocab_size <= 40
    with pytest.raises(UserError, match="config.data.vocabulary is empty"):
        vocabulary.tokenizer_of(INPUTS, DataConfig("given"), Numbered(5))


def test_a_cleaning_is_for_a_published_vocabulary():
    with pytest.raises(
        UserError, match="config.data.clean='albef' is for a published vocabulary; give data.vocabulary"
    ):
        vocabulary.tokenizer_of(INPUTS, DataConfig("given", train_vocabulary=520, clean="albef"), Numbered(5))


def test_a_method_without_texts_has_no_tokenizer():
    assert (
        vocabulary.tokenizer_of({"image": Image(8)}, DataConfig("given", vocabulary="/no/such/file.gz"), Numbered(5))
        is None
    )
