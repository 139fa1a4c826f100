"""The probe that starts as the zero-shot classifier."""

from __future__ import annotations

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set

from jaxclip.data.skips import SkipLog
from jaxclip.evaluate import linear_probe, zeroshot_classification, zeroshot_probe
from jaxclip.evaluate.on_features import Further
from jaxclip.evaluate.prompts.choice import Prompts

CLASSES = tuple("abcdefgh")
# Directions of the classes, and where texts say that they are: the last is far off.
RIGHT = np.eye(8, 12)
TEXTS = {name: np.eye(12)[place if place < 7 else 11].tolist() for place, name in enumerate(CLASSES)}


class Given(NoRecords):
    def __init__(self, seed: int, each: int):
        super().__init__(*CLASSES)
        labels = np.repeat(np.arange(8), each)
        rows = RIGHT[labels] + 0.4 * np.random.default_rng(seed).standard_normal((len(labels), 12))
        self.embedded = embedded_set(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels.tolist())


class Encoded(LookUp):
    def source(self, variables, source, skips, ids=None, function="encode_image"):
        assert function == "encode_image"
        return source.embedded


def accuracies(shots: tuple[int, ...], module, **options) -> dict[str, float]:
    further = {"train": Given(1, 20), "validation": Given(2, 30)}
    prepared = Further(further, CLASSES, Prompts(CLASSES, ("{c}",)))
    evaluator = module.Evaluator("data", train="x", shots=shots, seeds=5, **options)
    return dict(evaluator.run(Encoded(TEXTS), None, Given(3, 50), SkipLog(), prepared).metrics)


def test_few_images_start_from_what_the_texts_know_and_correct_it(monkeypatch):
    monkeypatch.setattr(zeroshot_probe, "logit_scale", lambda *_: 10.0)
    data = Given(3, 50)
    prompts = Prompts(CLASSES, ("{c}",))
    zero = zeroshot_classification.Evaluator("data").run(Encoded(TEXTS), None, data, SkipLog(), prompts).metrics["acc1"]
    ours = accuracies((1, 16), zeroshot_probe)
    # The same embeddings, with a regularizer that pulls to 0.
    monkeypatch.setattr(linear_probe.Evaluator, "function", "encode_image")
    plain = accuracies((1, 16), linear_probe)
    assert ours["lp_acc1_1shot"] > max(plain["lp_acc1_1shot"] + 0.1, zero - 0.01)
    assert ours["lp_acc1_16shot"] > zero + 0.02
    assert ours["lp_acc1"] == pytest.approx(plain["lp_acc1"], abs=0.05)
