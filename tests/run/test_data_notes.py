"""What a run says of data that is unusual and yet may be wanted, and keys of the data that have no effect."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_source import MadeSource

from configs import quickstart
from jaxclip.config import Config, DataConfig, ViewConfig
from jaxclip.data.findings import look_at
from jaxclip.data.record import Record
from jaxclip.data.sources import names_of
from jaxclip.errors import UserError
from jaxclip.inputs import Image
from jaxclip.parsing import parse
from jaxclip.run import check_used, data_notes


@dataclasses.dataclass(frozen=True)
class Captions(MadeSource):
    """Gray images with one caption each."""

    captions: tuple[str, ...] = ("one", "two")
    grays: tuple[int, ...] = (99,)

    def record(self, index: int) -> Record:
        gray = self.grays[index % len(self.grays)]
        return Record(np.full((4, 4, 3), gray, np.uint8), (self.captions[index],), str(index))


def notes(train="a.tar", evaluated="b.tar", evals=(), batch_size=2, captions=("one", "two"), grays=(99,)) -> list[str]:
    config = quickstart.get_config()
    config.batch_size, config.data.eval = batch_size, evaluated
    with config.data.ignore_type():
        config.data.train = train
    config.evals = {name: {"task": "zeroshot_retrieval", "data": data} for name, data in evals}
    found = look_at(Captions(len(captions), captions, grays), 64)
    return list(data_notes(parse(Config, config), len(captions), found))


def test_usual_data_need_no_word():
    assert notes(evals=[("x", "c.tar")]) == []


def test_a_batch_larger_than_the_data_is_said():
    (said,) = notes(batch_size=3)
    assert said.startswith(
        "data.train has 2 records, fewer than batch_size=3: a batch holds some of them more than once"
    )


def test_captions_that_are_not_utf_8_are_counted():
    (said,) = notes(captions=("caf\ufffd", "two", "\ufffd\ufffd"))
    assert said.startswith("data.train: 2 captions of 3 sampled records have bytes that are not UTF-8")


def test_images_of_12_bits_in_16_are_named_if_most_are_as_dark_as_that():
    (said,) = notes(captions=("one", "two", "three"), grays=(16, 0, 255))
    assert said.startswith("data.train: 2 of 3 sampled images are almost black: if they hold 12-bit values in 16 bits")
    assert notes(grays=(16, 255)) == []


@pytest.mark.parametrize("train", ["b.tar", "a.tar + b.tar", "0.7 * a.tar + 0.3 * b.tar", [("b.tar", 1.0)]])
def test_data_that_is_trained_on_and_evaluated_is_named_with_its_key(train):
    said = notes(train=train, evals=[("x", "c.tar + b.tar"), ("y", "c.tar")])
    assert [line.partition(": trained on, too")[0] for line in said] == ["data.eval, config.evals.x.data"]


def test_the_sources_of_a_text():
    assert names_of(" a.tar ") == {"a.tar"}
    assert names_of("a.tar + 'b c'.csv") == {"a.tar", "'b c'.csv"}
    assert names_of("0.7 * a.tar + .3 * b.tar") == {"a.tar", "b.tar"} == names_of([("a.tar", 0.7), ("b.tar", 0.3)])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"views": {"ssl": ViewConfig(), "other": ViewConfig()}}, "config.data.views.other: no image of the method"),
        (
            {"augment_on_device": True, "views": {"ssl": ViewConfig(flip=False)}},
            "config.data.augment_on_device=True: no",
        ),
    ],
)
def test_a_key_without_effect_is_refused(keys, said):
    kinds = {"image": Image(16), "first": Image(16, view="ssl")}
    check_used(kinds, DataConfig(train="a.tar", views={"ssl": ViewConfig()}))
    check_used(kinds, DataConfig(train="a.tar", views={"ssl": ViewConfig()}, augment_on_device=True))
    with pytest.raises(UserError, match=said):
        check_used(kinds, DataConfig(train="a.tar", **keys))
