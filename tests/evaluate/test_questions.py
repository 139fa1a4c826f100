"""Questions and statements about images: what is asked of the model, and how its answers count."""

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
from jaxclip.data.record import Question, Record
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate import question_answering, statements
from jaxclip.evaluate.asked_questions import Questions, frequent_answers, questions_of
from jaxclip.evaluate.question_answering import credits_of

ANSWERS = ("yes", "no", "dark red", "two")
STATEMENTS = ("a dot is left", "all are red", "two dots", "nothing")
IMAGE = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
TEXT = {"vocab_size": 520, "context_length": 24, "width": 16, "layers": 2, "heads": 2, "stddev": 0.5}


@dataclasses.dataclass(frozen=True)
class Asked(MadeSource):
    """Images of noise, the third of them damaged, each with questions, and with statements if it has a second image."""

    length: int = 7

    def record(self, index: int) -> Record:
        rng = np.random.default_rng(index)
        images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
        questions = [Question(f"is it {word}?", ((ANSWERS[(index + n) % 4], 1.0),)) for n, word in enumerate("abc")]
        questions += [Question(text, (), (index + n) % 3 % 2) for n, text in enumerate(STATEMENTS[: 1 + index % 3])]
        first = b"not an image" if index == 2 else images[0]
        return Record(first, (), str(index), more_images=(images[1],), questions=tuple(questions))


TASKS = {"albef_vqa": {"answer_length": 12}, "albef_entailment": {"classes": 2}, "albef_nlvr2": {}}


@functools.cache
def encoder(name: str, devices: int = 1, batch_size: int = 4) -> tuple[Encoder, Any]:
    kind = methods.from_config({"name": name, "image": IMAGE, "text": TEXT, "distillation": 0.0, **TASKS[name]})
    params = methods.init_variables(kind, jax.random.key(0))[0]
    tokenizer = tokenizers.train([*ANSWERS, *STATEMENTS], 520)
    return Encoder(kind, mesh_of(devices), "float32", tokenizer, batch_size), params


def pairs(labeled: bool, images: int, blank: bool = False) -> tuple[np.ndarray, list[Question]]:
    """The images of each question, [questions, images, 16, 16, 3], and the questions."""
    found = []
    for record in Asked().read([0, 1, 3, 4, 5, 6]):
        shown = np.stack([record.image, *record.more_images][:images])
        shown = np.full_like(shown, 127) if blank else shown
        found += [(shown, one) for one in record.questions if (one.label is not None if labeled else one.answers)]
    return np.stack([shown for shown, _ in found]), [one for _, one in found]


@functools.cache
def judged(name: str, blank: bool = False) -> list[bool]:
    """Whether the model judges each statement rightly."""
    own, params = encoder(name)
    images, questions = pairs(True, 2 if name == "albef_nlvr2" else 1, blank)

    @jax.jit
    def judge(params: Any, images: jax.Array, *text: jax.Array) -> jax.Array:
        model = methods.bind(own.method)(params)
        tokens = jnp.stack([model.image_tokens(images[:, place]) for place in range(images.shape[1])], axis=1)
        return jnp.argmax(model.judge(tokens, *text), axis=1)

    found = judge(params, images, *own.tokenize([one.text for one in questions]))
    return (np.asarray(found) == [one.label for one in questions]).tolist()


@pytest.mark.parametrize("name", ["albef_entailment", "albef_nlvr2"])
def test_each_statement_is_judged_with_its_images_and_without(name):
    found = statements.Evaluator("data").run(*encoder(name), Asked(), SkipLog(), None)
    assert found.metrics["accuracy"] == pytest.approx(np.mean(judged(name)))
    assert found.metrics["blank_accuracy"] == pytest.approx(np.mean(judged(name, blank=True)))
    np.testing.assert_array_equal(found.outcomes["accuracy"], judged(name))
    labels = [
        question.label
        for record in Asked().read([0, 1, 3, 4, 5, 6])
        for question in record.questions
        if question.label is not None
    ]
    assert found.metrics["majority"] == pytest.approx(max(np.mean(labels), 1 - np.mean(labels)))


def test_neither_devices_nor_batches_change_the_result():
    found = [
        statements.Evaluator("data").run(*encoder("albef_entailment", *how), Asked(), SkipLog(), None)
        for how in ((1, 4), (8, 8), (1, 16))
    ]
    assert found[1].metrics == pytest.approx(found[0].metrics) and found[2].metrics == pytest.approx(found[0].metrics)
    assert found[1].outcomes_of == found[0].outcomes_of


def test_images_that_cannot_be_read_are_counted_and_left_out():
    skips = SkipLog()
    found = statements.Evaluator("data").run(*encoder("albef_entailment"), Asked(), skips, None)
    assert skips.total == 1 and len(found.outcomes["accuracy"]) == sum(
        1 + index % 3 for index in range(7) if index != 2
    )


def test_a_label_that_the_model_does_not_have_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Other(Asked):
        def record(self, index: int) -> Record:
            return dataclasses.replace(super().record(index), questions=(Question("x", (), 5),))

    with pytest.raises(UserError, match=r"^a sentence has the label 5, and the model 2 classes, from 0: take a model"):
        statements.Evaluator("data").run(*encoder("albef_entailment"), Other(), SkipLog(), None)


def test_classes_that_the_data_does_not_name_have_numbers():
    @dataclasses.dataclass(frozen=True)
    class Fewer(Asked):
        class_names: tuple[str, ...] = ("False",)

    found = statements.Evaluator("data").run(*encoder("albef_entailment"), Fewer(), SkipLog(), None)
    assert set(found.tables[1].rows) == {"False", "1"}


def test_no_questions_at_all_is_one_line():
    @dataclasses.dataclass(frozen=True)
    class Captions(Asked):
        def record(self, index: int) -> Record:
            return dataclasses.replace(super().record(index), questions=())

    with pytest.raises(UserError, match=r"^no record has a sentence with a label$"):
        questions_of(Captions(), labeled=True)
    with pytest.raises(UserError, match=r"^no record has a question with answers$"):
        questions_of(Captions(), labeled=False)


def test_answers_are_those_of_the_model():
    own, params = encoder("albef_vqa")
    images, questions = pairs(False, 1)
    tokens, ends = own.tokenizer([*ANSWERS], 12)

    @jax.jit
    def answer(params: Any, images: jax.Array, *text: jax.Array) -> jax.Array:
        model = methods.bind(own.method)(params)
        return model.answer(model.image_tokens(images), *text, jnp.asarray(tokens), jnp.asarray(ends), k=4)

    found = answer(params, images[:, 0], *own.tokenize([one.text for one in questions]))
    right = [ANSWERS[place] == one.answers[0][0] for place, one in zip(found, questions, strict=True)]
    evaluator = question_answering.Evaluator("data", train="unused")
    found = evaluator.run(own, params, Asked(), SkipLog(), [*ANSWERS])
    assert found.metrics["vqa_accuracy"] == pytest.approx(np.mean(right))
    assert {example.right for example in found.examples} <= {True, False} and found.examples


def test_an_answer_is_right_if_three_of_ten_gave_it():
    """The mean over the ten subsets of nine annotators of min(how many of them gave it / 3, 1)."""
    counts = (0, 1, 2, 3, 4, 10)
    questions = [Question("?", (("Yes", count / 10),)) for count in counts]
    asked = Questions([0], np.zeros(6, int), questions)
    expected = []
    for count in counts:
        given = np.arange(10) < count
        expected.append(np.mean([min(np.delete(given, left_out).sum() / 3, 1) for left_out in range(10)]))
    np.testing.assert_allclose(credits_of(asked, np.zeros(6, int), ["yes"]), expected)


def test_the_list_has_the_most_frequent_answers():
    answers = ((("red", 0.6), ("blue", 0.4)), (("Blue ", 1.0),), (("green", 0.5),))
    asked = Questions([0], np.zeros(3, int), [Question("?", one) for one in answers])
    assert frequent_answers(asked, 2) == ["blue", "red"]
