"""The images that evaluations show: of the surest answers, and of what was found first and last."""

from __future__ import annotations

import json

import numpy as np
from look_up import LookUp, NoRecords, embedded_set

from jaxclip.data.record import Record, Skip
from jaxclip.data.skips import SkipLog
from jaxclip.evaluate import Example, zeroshot_classification, zeroshot_retrieval
from jaxclip.evaluate.evaluation import to_json
from jaxclip.inputs import Image


class Grays(NoRecords):
    """Each record's image is as light as its number, so that an image tells which one it is."""

    def read(self, ids):
        return [Record(np.full((300, 300, 3), number, np.uint8), (), str(number)) for number in ids]


GRAYS = Grays()


class Seeing(LookUp):
    """An encoder with images of 224 pixels."""

    def __init__(self, table, embedded):
        super().__init__(table, embedded)
        self.image = Image(224)


def numbers(examples: tuple[Example, ...], right: bool) -> list[int]:
    return [int(example.image[0, 0, 0]) for example in examples if example.right is right]


def classified(
    labels: list[int], taken: list[int], names: tuple[str, ...], source: NoRecords = GRAYS
) -> tuple[Example, ...]:
    """Images of labels that are taken for other classes; the later an image stands, the surer."""
    rows = np.eye(len(names))[taken] * np.linspace(1, 2, len(taken))[:, None]
    table = dict(zip(names, np.eye(len(names)), strict=True))
    encoder = Seeing(table, embedded_set(rows, labels=labels))
    prompts = zeroshot_classification.Prompts(names, ("{c}",))
    evaluator = zeroshot_classification.Evaluator("data")
    return evaluator.run(encoder, None, source, SkipLog(), prompts).examples


def test_the_surest_right_and_wrong_answers_of_different_classes_come_first():
    """Cats 0 to 3 of which the last is taken for a dog, dogs 4 to 6 of which the last is taken for a cat."""
    examples = classified([0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0], ("cat", "dog"))
    assert numbers(examples, True) == [5, 2, 4, 1, 0]
    assert numbers(examples, False) == [6, 3]
    confidence = np.exp(1 + 5 / 6) / (np.exp(1 + 5 / 6) + 1)
    assert examples[0].text == f"dog ({confidence:.1%})"
    assert [example.text.split(" (")[0] for example in examples[-2:]] == ["dog, taken for cat", "cat, taken for dog"]


def test_there_are_a_dozen_of_each_kind_and_confusions_show_others():
    """Of 20 classes, each has two right images and four that are taken for the next class."""
    names = tuple(f"c{index}" for index in range(20))
    labels = [label for label in range(20) for _ in range(6)]
    taken = [label if turn < 2 else (label + 1) % 20 for label in range(20) for turn in range(6)]
    examples = classified(labels, taken, names)
    right, wrong = numbers(examples, True), numbers(examples, False)
    assert right == [6 * label + 1 for label in range(19, 7, -1)]
    assert wrong[:12] == [6 * label + 5 for label in range(19, 7, -1)]
    # All confusions are equally frequent: those of the first classes, whose images were not shown, two of each.
    assert wrong[12:] == [place for label in range(6) for place in (6 * label + 5, 6 * label + 4)]
    assert len(examples) == 36 and all(example.image.shape == (112, 112, 3) for example in examples)


def test_an_image_that_can_no_longer_be_read_is_left_out():
    class OneLost(Grays):
        def read(self, ids):
            return [Skip("gone", "1") if number == 1 else super(OneLost, self).read([number])[0] for number in ids]

    examples = classified([0, 0, 1], [0, 0, 0], ("cat", "dog"), OneLost())
    assert (numbers(examples, True), numbers(examples, False)) == ([0], [2])


def test_a_caption_of_each_image_that_finds_it_first_and_that_finds_it_last():
    """By hand: a1 finds its image, b0 has c's before its own, b1 is behind both others, c0 is surer than a0 and a1."""
    table = {
        "a0": [0.8, 0.1, 0.0],
        "a1": [0.9, 0.7, 0.0],
        "b0": [0.1, 0.5, 0.6],
        "b1": [0.5, 0.1, 0.2],
        "c0": [0.0, 0.2, 0.95],
    }
    images = embedded_set(np.eye(3), captions=[["a0", "a1"], ["b0", "b1"], ["c0"]])
    evaluator = zeroshot_retrieval.Evaluator("data")
    examples = evaluator.run(Seeing(table, images), None, GRAYS, SkipLog(), None).examples
    assert numbers(examples, True) == [2, 0] and numbers(examples, False) == [1]
    assert [example.text for example in examples] == ["c0 (rank 1 of 3)", "a1 (rank 1 of 3)", "b1 (rank 3 of 3)"]


def test_the_mark_is_in_the_json_where_there_is_one():
    examples = classified([0, 1], [0, 0], ("cat", "dog")) + (Example(np.zeros((4, 4, 3), np.uint8), "plain"),)
    result = zeroshot_classification.evaluate.Result({}, "", examples=examples)
    content = json.loads(json.dumps(to_json(result)))["examples"]
    assert [example.get("right", "none") for example in content] == [True, False, "none"]
    assert all(example["image"].startswith("data:image/webp;base64,") for example in content)
