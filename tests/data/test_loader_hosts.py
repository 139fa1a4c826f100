"""The order of a million examples and the bytes of 80 batches, for any number of hosts and any first step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import pytest
from made_source import MadeSource

from jaxclip.config import DataConfig
from jaxclip.data import tokenizers
from jaxclip.data.loader import TrainingLoader
from jaxclip.data.mixture import Mixture
from jaxclip.data.record import Record, Skip
from jaxclip.data.views import Views
from jaxclip.inputs import Image, Text

HOSTS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Images(MadeSource):
    """Small images of noise; every tenth cannot be read."""

    name: str = "image"

    def record(self, index: int) -> Record | Skip:
        if index % 10 == 3:
            return Skip("unreadable shard", f"{self.name}:{index}")
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3)).astype(np.uint8)
        return Record(pixels, (f"{self.name} {index} on the left", f"number {index}"), f"{self.name}:{index}")


def uneven(length: int) -> np.ndarray:
    """Ends of chunks of 1 to 99 records."""
    ends = np.cumsum(np.random.default_rng(0).integers(1, 100, length))
    return np.append(ends[ends < length], length)


def sources(length: int) -> dict[str, object]:
    half, rest = length * 3 // 5, length - length * 3 // 5
    return {
        "plain": Images(length),
        "chunked": Images(length, chunk_ends=uneven(length)),
        "both at once": Mixture([Images(half), Images(rest, "other", chunk_ends=uneven(rest))]),
        "weighted": Mixture([Images(half), Images(rest, "other", chunk_ends=uneven(rest))], (0.25, 0.75)),
    }


@functools.cache
def tokenizer():
    return tokenizers.train([f"image number {i % 10} other on the left right" for i in range(20)], 600)


def loader(source, batch_size: int, host: int = 0, hosts: int = 1) -> TrainingLoader:
    config = DataConfig(
        train="given", train_vocabulary=600, crop_scale=(0.3, 1.0), flip=True, shuffle_window=500, max_skip_rate=0.5
    )
    views = Views({"image": Image(8), "text": Text(10)}, config, tokenizer())
    return TrainingLoader(source, views, config, batch_size, 7, host, hosts)


@pytest.mark.parametrize("name", sources(10))
def test_ten_epochs_are_whole(name):
    length = 10_000
    batch = 1000
    source = sources(length)[name]
    whole = loader(source, batch)
    ids = np.concatenate([whole.places(step * batch, batch)[1] for step in range(10 * length // batch)])
    assert len(ids) == 10 * length
    if name == "weighted":
        assert np.mean(ids < length * 3 // 5) == 0.25
        half = length * 3 // 5
        first, second = ids[ids < half], ids[ids >= half] - half
        for part, of in ((first, half), (second, length - half)):
            # Shuffled in each four examples and, the chunked ones, within a batch: so an epoch begins within one.
            counts = np.bincount(part[: len(part) // of * of], minlength=of)
            assert abs(counts - len(part) // of).max() <= 1 and (counts != len(part) // of).mean() < 0.05
        return
    for epoch in ids.reshape(10, length):
        assert np.array_equal(np.sort(epoch), np.arange(length))
    assert len({epoch.tobytes() for epoch in ids.reshape(10, length)}) == 10


@pytest.mark.parametrize("name", sources(10))
def test_the_sequence_is_the_same_on_any_hosts_and_from_any_step(name):
    length, batch = 100_000, 1000
    source = sources(length)[name]
    whole = loader(source, batch)
    steps = np.random.default_rng(1).integers(0, 10**6, 20)
    for step in steps.tolist():
        expected = np.stack(whole.places(step * batch, batch))
        for hosts in HOSTS:
            # As after a restart: nothing is known of any other step.
            share, rows = loader(source, batch, hosts=hosts), batch // hosts
            parts = [np.stack(share.places(step * batch + host * rows, rows)) for host in range(hosts)]
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


def test_rows_of_chunks_are_read_together():
    source = sources(100_000)["chunked"]
    for host in range(4):
        _, ids, _ = loader(source, 400, host, 4).places(5 * 400 + host * 100, 100)
        chunks = np.searchsorted(source.chunk_ends, ids, side="right")
        # A window of 500 records is ten chunks, of which each of four hosts needs a quarter.
        assert len(np.unique(chunks)) <= 5 and np.array_equal(chunks, np.sort(chunks))


def digest(batch: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


@pytest.mark.parametrize("name", ["plain", "weighted"])  # the other orders are parts of the second
def test_the_bytes_of_batches_are_the_same_on_any_hosts_and_after_any_restart(name):
    steps = 40
    source, batch = sources(700)[name], 16
    expected = [digest(loaded) for loaded in loader(source, batch).batches(0, steps)]
    assert len(set(expected)) == steps
    for hosts in HOSTS[1:]:
        shares = [list(loader(source, batch, host, hosts).batches(0, steps)) for host in range(hosts)]
        found = [
            digest({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
            for parts in zip(*shares, strict=True)
        ]
        assert found == expected
    for start in (17, steps - 1):
        assert [digest(loaded) for loaded in loader(source, batch).batches(start, steps)] == expected[start:]
