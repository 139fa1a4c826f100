"""Bad records of every kind among good ones: counts by reason, and delivery of all good records."""

from __future__ import annotations

import collections
import os
import re

import hostile
import numpy as np
import pytest
from PIL import Image

from jaxclip import inputs
from jaxclip.config import DataConfig
from jaxclip.data import order, tokenizers
from jaxclip.data.images import decode as images
from jaxclip.data.loader import TrainingLoader
from jaxclip.data.sources import open_source
from jaxclip.data.views import Views

# Pillow warns of much of this, once for each kind.
pytestmark = [pytest.mark.hostile, pytest.mark.filterwarnings("ignore:::PIL")]


@pytest.mark.parametrize("kind", hostile.IMAGES)
def test_a_bad_image_has_its_reason(kind):
    make, reason = hostile.IMAGES[kind]
    for seed in range(5):
        with pytest.raises(images.Unreadable) as raised:
            images.decode(make(np.random.default_rng(seed)))
        assert str(raised.value) == reason


@pytest.mark.parametrize("kind", hostile.SOUND)
def test_an_odd_image_is_decoded(kind):
    assert images.decode(hostile.SOUND[kind](np.random.default_rng(0))).mode == "RGB"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_images_are_refused_or_decoded(form):
    rng = np.random.default_rng(0)
    for number in range(100):
        data = hostile.flip(hostile.encode(hostile.noise(rng), form), rng, 0 if number % 2 else 30, 1 + number % 9)
        try:
            image = images.decode(data)
        except images.Unreadable as error:
            assert re.fullmatch("[a-z0-9 -]+", str(error))
        else:
            assert isinstance(image, Image.Image) and image.mode == "RGB"


def expected_counts(reasons: list[str | None], seed: int, rows: int) -> tuple[collections.Counter, list[int]]:
    """The expected skips and delivered records if every row's record and its replacements are tried in turn."""
    ids, _ = order.Shuffled(seed, len(reasons))(np.arange(rows))
    counts, delivered = collections.Counter(), []
    for position, record in enumerate(ids.tolist()):
        attempt = 0
        while (reason := reasons[record]) is not None:
            counts[reason] += 1
            record = order.substitute(seed, position, attempt, range(len(reasons)))
            attempt += 1
        delivered.append(record)
    return counts, delivered


def deliver(folder, kinds: int, good: int) -> None:
    """Compares the counts and the delivered records of one epoch with the expected ones."""
    reasons, pattern = hostile.write_shards(folder, kinds, good)
    files = sorted(os.listdir(folder))
    # Words that come twice become tokens, so that a long caption still shows its number.
    tokenizer = tokenizers.train([f"number {i % 10}" for i in range(40)], 600)
    batch = 64
    rows = -(-len(reasons) // batch) * batch
    config = DataConfig(train=pattern, train_vocabulary=600, max_skip_rate=1.0)
    views = Views({"image": inputs.Image(8), "text": inputs.Text(16)}, config, tokenizer)
    loader = TrainingLoader(open_source(pattern), views, config, batch, 0)
    found: list[int] = []
    for loaded in loader.batches(0, rows // batch):
        assert loaded["image"].shape == (batch, 8, 8, 3)
        for tokens in loaded["text"]:
            words = re.match(r"number ((?:\d ?)+)", tokenizer.decode(tokens))
            assert words
            found.append(int(words[1].replace(" ", "")))
    counts, delivered = expected_counts(reasons, 0, rows)
    assert loader.skips.counts == counts
    assert len(counts) == len({reason for reason in reasons if reason}) and min(counts.values()) >= kinds
    assert sorted(set(found)) == list(range(good))
    assert len(found) == len(delivered)
    assert sorted(os.listdir(folder)) == files, "something was written beside the shards"


def test_every_bad_record_is_counted_and_every_good_one_delivered(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    deliver(folder, kinds=10, good=500)


@pytest.mark.slow
def test_two_thousand_bad_records(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    assert (len(hostile.IMAGES) + len(hostile.CAPTIONS)) * 60 > 2_000
    deliver(folder, kinds=60, good=2_000)
