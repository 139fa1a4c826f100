"""Mixtures of sources: the assignment of records, their text form, and replacements of unusable records."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxclip.data import mixture
from jaxclip.data.mixture import Mixture
from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import open_source
from jaxclip.errors import UserError


@dataclasses.dataclass(frozen=True)
class Named:
    """Records that say which source and id they are."""

    name: str
    length: int
    chunk_ends: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def read(self, ids) -> list[Record | Skip]:
        assert all(0 <= index < self.length for index in ids)
        return [Record(b"", (f"{self.name} {index}",), f"{self.name}:{index}") for index in ids]


def test_records_of_all_sources_are_found_in_the_order_asked():
    mixed = Mixture([Named("a", 3), Named("b", 5), Named("c", 1)])
    assert len(mixed) == 9
    captions = [record.captions[0] for record in mixed.read([8, 0, 3, 2, 7, 3])]
    assert captions == ["c 0", "a 0", "b 0", "a 2", "b 4", "b 0"]


@pytest.mark.parametrize(
    ("weights", "shares"), [((0.7, 0.3), (7, 3)), ((2, 4), (1, 2)), ((1e-3, 1), (1, 1000)), ((0.1, 0.25), (2, 5))]
)
def test_shares_are_the_weights_as_they_are_written(weights, shares):
    assert Mixture([Named("a", 3), Named("b", 5)], weights).shares == shares


def test_without_weights_every_record_comes_once_in_an_epoch():
    mixed = Mixture([Named("a", 30), Named("b", 12)])
    ids, _ = mixture.training_order(mixed, 0, 10)(np.arange(84))
    for epoch in ids.reshape(2, 42):
        assert sorted(epoch.tolist()) == list(range(42))


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_above_zero(weight):
    with pytest.raises(UserError, match="must be above 0"):
        Mixture([Named("a", 3), Named("b", 5)], (1, weight))


def test_replacements_are_from_the_same_source_and_first_from_the_same_chunk():
    chunked = Named("b", 50, np.array([10, 35, 50]))
    mixed = Mixture([Named("a", 20), chunked])
    assert mixture.may_replace(mixed, 5, 0) == range(0, 20)
    assert mixture.may_replace(mixed, 20 + 12, 0) == range(30, 55)
    assert mixture.may_replace(mixed, 20 + 9, 0) == range(20, 30)
    assert mixture.may_replace(mixed, 20 + 12, 99) == range(20, 70)


def test_chunks_are_numbered_through_all_sources():
    mixed = Mixture([Named("a", 20), Named("b", 50, np.array([10, 35, 50])), Named("c", 5)])
    assert mixture.is_chunked(mixed) and not mixture.is_chunked(Named("a", 20))
    assert mixture.chunk_numbers(mixed, np.array([0, 19, 20, 29, 30, 69, 70])).tolist() == [0, 0, 1, 1, 2, 3, 4]


def test_a_config_names_mixtures():
    both = open_source("shapes:seen + shapes:unseen")
    assert isinstance(both, Mixture) and len(both) == sum(len(part) for part in both.sources)
    weighted = open_source("0.25 * shapes:seen + .75 * shapes:unseen")
    assert isinstance(weighted, Mixture) and weighted.shares == (1, 3)
    assert weighted.class_names == open_source("shapes").class_names
    listed = open_source([("shapes:seen", 0.25), ("shapes:unseen", 0.75)])
    assert isinstance(listed, Mixture) and listed.shares == (1, 3)


def test_a_plus_or_a_star_in_a_path_is_no_mixture(tmp_path: pathlib.Path):
    (tmp_path / "a+b.csv").write_text("path,caption\nx.png,a cat\n")
    assert len(open_source("a+b.csv", root=str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5 * shapes + shapes:seen", "give either all sources a weight"),
        ("0 * shapes + 1 * shapes:seen", "must be above 0"),
        ("shapes + nothing.xyz", "'nothing.xyz' is not a data source"),
    ],
)
def test_an_invalid_mixture_is_an_error(text, said):
    with pytest.raises(UserError, match=said):
        open_source(text)


def test_a_sample_is_spread_over_a_source():
    assert mixture.spread(Named("a", 100), 5) == [0, 24, 49, 74, 99]
    assert mixture.spread(Named("a", 3), 50) == [0, 1, 2]


def test_a_sample_of_a_chunked_source_comes_from_few_chunks():
    ends = np.cumsum(np.random.default_rng(0).integers(0, 100, 500))
    ids = mixture.spread(Named("a", int(ends[-1]), ends), 320)
    assert 200 < len(ids) <= 320 and ids == sorted(set(ids)) and ids[0] >= 0 and ids[-1] < ends[-1]
    assert len(np.unique(np.searchsorted(ends, ids, side="right"))) <= 16


def test_a_sample_of_a_mixture_has_some_of_each():
    mixed = Mixture([Named("a", 1000), Named("b", 10, np.array([5, 10]))])
    ids = mixture.spread(mixed, 100)
    assert 90 < sum(index < 1000 for index in ids) <= 100 and any(index >= 1000 for index in ids)
