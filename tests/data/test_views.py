"""Inputs of methods made from records: several views, two images, questions, answers, tags, labels, ids."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from jaxclip import inputs
from jaxclip.config import AugmentConfig, DataConfig, ViewConfig
from jaxclip.data import order, tokenizers
from jaxclip.data.images import decode
from jaxclip.data.images.crops import random_resized_crop
from jaxclip.data.record import Question, Record, Skip
from jaxclip.data.views import Views
from jaxclip.errors import UserError

SIZE = 16
CONFIG = DataConfig(train="given", train_vocabulary=600, crop_scale=(0.5, 1.0), views={"ssl": ViewConfig()})
ALL = {
    "image": inputs.Image(SIZE),
    "second": inputs.Image(8, number=1),
    "text": inputs.Text(12),
    "question": inputs.Text(8, field="question"),
    "answers": inputs.Answers(length=6, count=3),
    "tags": inputs.Tags(4),
    "label": inputs.Label(),
    "record": inputs.RecordId(),
}


def noise(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


QUESTION = Question("how many dots", (("two", 0.3), ("a few", 0.1), ("2", 0.6), ("none", 0.05)))
RECORD = Record(
    noise(0),
    ("two red dots",),
    "set/7",
    label=5,
    more_images=(noise(1),),
    questions=(QUESTION,),
    tags=(1, 3, 9),
)


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.train(["two red dots left right", "how many dots a few 2 none"] * 2, 600)


def test_a_batch_has_the_arrays_that_the_shapes_say(tokenizer):
    views = Views(ALL, CONFIG, tokenizer)
    for row in (views.training(RECORD, 1, 0, 7), views.evaluation(RECORD, 7)):
        assert not isinstance(row, Skip)
        batch = views.batch([row, row])
        expected = inputs.shapes(ALL, 2)
        assert batch.keys() == expected.keys()
        for name, array in batch.items():
            assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype), name
        assert batch["tags"].tolist() == [[0, 1, 0, 1]] * 2
        assert batch["label"].tolist() == [5, 5] and batch["record"].tolist() == [7, 7]
        assert [tokenizer.decode(row) for row in batch["answers"][0]] == ["2", "two", "a few"]
        np.testing.assert_allclose(batch["answers_weight"][0], [0.6, 0.3, 0.1])
        assert tokenizer.decode(batch["question"][0]) == "how many dots"


def test_missing_answers_have_no_weight(tokenizer):
    views = Views({"answers": inputs.Answers(length=6, count=3)}, CONFIG, tokenizer)
    row = views.evaluation(dataclasses.replace(RECORD, questions=(Question("how many", (("two", 1.0),)),)), 7)
    assert views.batch([row])["answers_weight"].tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ({"captions": ()}, "no caption"),
        ({"questions": ()}, "no question"),
        ({"questions": (Question("how many"),)}, "no answer"),
        ({"tags": None}, "no tags"),
        ({"more_images": ()}, "no further image"),
    ],
)
def test_a_record_that_lacks_an_input_is_skipped_by_reason(tokenizer, lacking, reason):
    views, record = Views(ALL, CONFIG, tokenizer), dataclasses.replace(RECORD, **lacking)
    assert views.training(record, 1, 0, 7) == views.evaluation(record, 7) == Skip(reason, "set/7")


def test_the_first_image_is_the_crop_that_it_is_without_further_views(tokenizer):
    """A recipe's batches stay what they are if its method asks for more."""
    several = {"image": inputs.Image(SIZE), "one": inputs.Image(SIZE, view="ssl"), "text": inputs.Text(12)}
    row = Views(several, CONFIG, tokenizer).training(RECORD, 3, 0, 7)
    alone = Views({"image": inputs.Image(SIZE), "text": inputs.Text(12)}, CONFIG, tokenizer).training(RECORD, 3, 0, 7)
    expected = random_resized_crop(RECORD.image, SIZE, order.record_rng(3), CONFIG.crop_scale)
    np.testing.assert_array_equal(row["image"], alone["image"])
    np.testing.assert_array_equal(row["image"], np.asarray(expected))


def test_views_of_one_image_differ_and_depend_on_the_key_alone():
    views = Views(dict.fromkeys(("one", "two"), inputs.Image(SIZE, view="ssl")), CONFIG, None)
    first, again, other = (views.training(RECORD, key, 0, 7) for key in (1, 1, 2))
    assert not np.array_equal(first["one"], first["two"])
    for name in ("one", "two"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_evaluation_augments_named_views_the_same_way_every_time():
    """Two equal views would make a loss between them meaningless."""
    views = Views(dict.fromkeys(("one", "two"), inputs.Image(SIZE, view="ssl")), CONFIG, None)
    first, again = views.evaluation(RECORD, 7), views.evaluation(RECORD, 7)
    assert not np.array_equal(first["one"], first["two"])
    np.testing.assert_array_equal(first["two"], again["two"])


def test_an_image_that_several_views_show_is_decoded_once(monkeypatch):
    file = io.BytesIO()
    Image.fromarray(noise(2, 200, 300)).save(file, "JPEG")
    calls = []
    decoded = decode.Encoded.decode
    monkeypatch.setattr(decode.Encoded, "decode", lambda self, shrink=1: calls.append(shrink) or decoded(self, shrink))
    views = Views({name: inputs.Image(SIZE, view="ssl") for name in ("one", "two", "three")}, CONFIG, None)
    assert not isinstance(views.training(dataclasses.replace(RECORD, image=file.getvalue()), 1, 0, 7), Skip)
    assert len(calls) == 1


def test_a_mirrored_caption_goes_with_a_mirrored_image(tokenizer):
    kinds = {"image": inputs.Image(40), "text": inputs.Text(12)}
    config = dataclasses.replace(CONFIG, crop_scale=(1.0, 1.0), flip=True)
    half = np.zeros((40, 40, 3), np.uint8)
    half[:, :20] = 255
    record = Record(half, ("dots left",), "set/0")
    rows = [Views(kinds, config, tokenizer).training(record, key, 0, 0) for key in range(20)]
    sides = {(row["text"], bool(row["image"][:, :10].mean() > row["image"][:, -10:].mean())) for row in rows}
    assert sides == {("dots left", True), ("dots right", False)}


QUESTIONS = tuple(Question(f"is it {word}", ((word, 1.0),), label=number) for number, word in enumerate("abcd"))
ASKED = {
    "question": inputs.Text(8, field="question"),
    "answers": inputs.Answers(length=6, count=3),
    "label": inputs.Label(),
}


def chosen(kinds: inputs.Inputs, record: Record, choice: str, epochs: int = 40) -> list[dict]:
    """The rows of a record in each epoch, as a run draws them."""
    views = Views(kinds, dataclasses.replace(CONFIG, captions=choice), None)
    return [views.training(record, int(order.record_keys(5, epoch, 7)), epoch, 7) for epoch in range(epochs)]


@pytest.mark.parametrize("choice", ["random", "sentence", "first", "all"])
def test_question_answers_and_label_are_of_one_question_chosen_in_each_epoch_as_captions_are(choice):
    rows = chosen(ASKED, dataclasses.replace(RECORD, questions=QUESTIONS), choice)
    found = [Question(row["question"], tuple(row["answers"]), int(row["label"])) for row in rows]
    assert set(found) == ({QUESTIONS[0]} if choice == "first" else set(QUESTIONS))
    turns = [set(found[start : start + 4]) for start in range(0, len(found), 4)]
    assert (choice == "all") == all(turn == set(QUESTIONS) for turn in turns)
    assert rows == chosen(ASKED, dataclasses.replace(RECORD, questions=QUESTIONS), choice)


def test_evaluation_takes_the_first_question():
    row = Views(ASKED, CONFIG, None).evaluation(dataclasses.replace(RECORD, questions=QUESTIONS), 7)
    assert row == {"question": "is it a", "answers": [("a", 1.0)], "label": 0}


def test_a_choice_of_questions_leaves_crops_and_captions_as_they_are():
    kinds = {"image": inputs.Image(SIZE), "text": inputs.Text(12)}
    config = dataclasses.replace(CONFIG, flip=True, caption_templates=("{c}", "a {c}"), drop_words=0.2)
    record = dataclasses.replace(RECORD, captions=("one", "two left", "three dots"), questions=QUESTIONS)
    for key in range(10):
        asked = Views(kinds | ASKED, config, None).training(record, key, 0, 7)
        plain = Views(kinds, config, None).training(dataclasses.replace(record, questions=()), key, 0, 7)
        assert asked["text"] == plain["text"]
        np.testing.assert_array_equal(asked["image"], plain["image"])


def test_questions_that_lack_answers_or_a_label_are_not_chosen_beside_others_that_have_them():
    mixed = dataclasses.replace(RECORD, questions=(Question("who"), Question("what", (("x", 1.0),)), QUESTIONS[2]))
    label, answers = {"label": ASKED["label"]}, {"answers": ASKED["answers"]}
    assert {int(row["label"]) for row in chosen(label, mixed, "random")} == {2}
    assert {row["answers"][0][0] for row in chosen(answers, mixed, "random")} == {"x", "c"}
    question = {"question": ASKED["question"]}
    assert {row["question"] for row in chosen(question, mixed, "random")} == {"who", "what", "is it c"}


def test_the_label_is_of_the_image_if_no_question_has_one():
    unlabeled = dataclasses.replace(RECORD, questions=(Question("who"), Question("what")))
    assert {int(row["label"]) for row in chosen({"label": inputs.Label()}, unlabeled, "random", 5)} == {5}


def test_a_mirrored_question_and_its_answers_go_with_a_mirrored_image():
    kinds = {"image": inputs.Image(40)} | ASKED
    config = dataclasses.replace(CONFIG, crop_scale=(1.0, 1.0), flip=True)
    half = np.zeros((40, 40, 3), np.uint8)
    half[:, :20] = 255
    question = Question("Left or right?", (("left", 0.75), ("on the right", 0.25)), label=1)
    record = Record(half, (), "set/0", questions=(question,))
    rows = [Views(kinds, config, None).training(record, key, 0, 0) for key in range(20)]
    sides = {
        (row["question"], *row["answers"], bool(row["image"][:, :10].mean() > row["image"][:, -10:].mean()))
        for row in rows
    }
    assert sides == {
        ("Left or right?", ("left", 0.75), ("on the right", 0.25), True),
        ("Right or left?", ("right", 0.75), ("on the left", 0.25), False),
    }
    assert {int(row["label"]) for row in rows} == {1}


def test_images_side_by_side_change_places_in_the_mirror():
    kinds = {"left": inputs.Image(8), "right": inputs.Image(8, number=1), "text": inputs.Text(8, field="question")}
    config = dataclasses.replace(CONFIG, crop_scale=(1.0, 1.0), flip=True)
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    question = Question("the left image is dark")
    record = Record(dark, (), "set/0", more_images=(bright,), questions=(question,))
    rows = [Views(kinds, config, None).training(record, key, 0, 0) for key in range(20)]
    assert {(row["text"], int(row["left"].max()), int(row["right"].max())) for row in rows} == {
        ("the left image is dark", 0, 255),
        ("the right image is dark", 255, 0),
    }


def test_what_the_device_augments_is_left_to_it():
    augment = AugmentConfig(color_jitter=(0.8, 0.8, 0.8, 0.2), color_jitter_p=1.0, gray=1.0, blur=1.0)
    view = {"ssl": ViewConfig(crop_scale=(1.0, 1.0), flip=True, augment=augment)}
    config = dataclasses.replace(CONFIG, views=view, augment_on_device=True)
    square = Record(noise(3, SIZE, SIZE), (), "set/0")
    rows = [
        Views({"one": inputs.Image(SIZE, view="ssl")}, config, None).training(square, key, 0, 0) for key in range(8)
    ]
    for row in rows:
        np.testing.assert_array_equal(row["one"], square.image)


def test_a_view_that_the_config_does_not_have_is_named():
    with pytest.raises(UserError, match="config.data.views.other is missing"):
        Views({"one": inputs.Image(SIZE, view="other")}, CONFIG, None)


def test_an_impossible_augmentation_of_a_view_is_named():
    config = dataclasses.replace(CONFIG, views={"ssl": ViewConfig(augment=AugmentConfig(gray=2.0))})
    with pytest.raises(UserError, match="data.views.ssl.augment.gray: p=2.0"):
        Views({"one": inputs.Image(SIZE, view="ssl")}, config, None)
