"""Batches as a pure function of (seed, step), for any number of processes, any first step and unreadable records."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np
import pytest
from made_source import MadeSource
from paths import ROOT

from jaxclip.config import AugmentConfig, DataConfig, PixelsConfig
from jaxclip.data import loader, order, tokenizers
from jaxclip.data.loader import TrainingLoader
from jaxclip.data.record import Record, Skip
from jaxclip.data.skips import SkipLog
from jaxclip.data.views import Views
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Text

SIZE, CONTEXT = 8, 12
CONFIG = DataConfig(train="numbered", train_vocabulary=600, crop_scale=(0.5, 1.0))
INPUTS = {"image": Image(SIZE), "text": Text(CONTEXT)}


@dataclasses.dataclass(frozen=True)
class Numbered(MadeSource):
    """Images of noise with their id as the caption; some ids hold something else."""

    instead: Mapping[int, Record | Skip] = dataclasses.field(default_factory=dict)

    def record(self, i: int) -> Record | Skip:
        assert 0 <= i < self.length
        if i in self.instead:
            return self.instead[i]
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        return Record(pixels, (f"number {i}",), f"numbered/{i}", i % 3)


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
    # Words that occur twice become tokens of their own, so that the captions below fit into the context.
    words = ["a photo of", "red left right of blue"] * 2
    return tokenizers.train([f"number {i}" for i in range(300)] + words, 600)


def training(source, batch_size: int = 8, config: DataConfig = CONFIG, seed: int = 0, **more) -> TrainingLoader:
    views = Views(INPUTS, config, tokenizer())
    return TrainingLoader(source, views, config, batch_size, seed, **more)


def arrays(loader: TrainingLoader, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, tokens and ends of the first examples."""
    rows = loader.rows(0, count)
    return rows["image"], rows["text"], rows["text_end"]


def captions(tokens: np.ndarray) -> list[str]:
    return [tokenizer().decode(row) for row in tokens]


def numbers(tokens: np.ndarray) -> list[int]:
    """The ids of the records that a batch's texts belong to."""
    return [int(caption.removeprefix("number").replace(" ", "")) for caption in captions(tokens)]


def stacked(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_rows_are_a_function_of_the_position_alone():
    first = training(Numbered(20))
    expected = first.rows(13, 9)
    first.rows(0, 40)
    again = first.rows(13, 9), training(Numbered(20)).rows(13, 9)
    one_by_one = [training(Numbered(20)).rows(position, 1) for position in range(13, 22)]
    for rows in (*again, stacked(one_by_one)):
        assert_same(rows, expected)


def test_a_row_holds_the_image_and_the_caption_of_one_record():
    plain = dataclasses.replace(CONFIG, crop_scale=(1.0, 1.0))
    square = {i: Record(np.full((SIZE, SIZE, 3), i, np.uint8), (f"number {i}",), f"square/{i}") for i in range(40)}
    rows = training(Numbered(40, square), config=plain).rows(0, 40)
    images, tokens, ends = rows["image"], rows["text"], rows["text_end"]
    assert images.dtype == np.uint8 and images.shape == (40, SIZE, SIZE, 3)
    assert tokens.dtype == np.int32 and tokens.shape == (40, CONTEXT)
    assert ends.dtype == np.int32 and (tokens[np.arange(40), ends] == tokenizer().end_id).all()
    assert images.mean((1, 2, 3)).astype(int).tolist() == numbers(tokens)


@pytest.mark.parametrize("batch_size", [1, 8, 40, 96])
def test_batches_are_the_rows_of_their_steps_in_order(batch_size):
    training_loader = training(Numbered(50), batch_size)
    found = stacked(training_loader.batches(2, 5))
    rows = training_loader.rows(2 * batch_size, 3 * batch_size)
    assert_same(found, rows)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("batch_size", [4, 40, 128])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(processes, batch_size):
    bad = {7: Skip("unreadable image", "numbered/7")}
    whole = list(training(Numbered(60, bad), batch_size).batches(0, 3))
    shares = [
        list(training(Numbered(60, bad), batch_size, process_index=i, process_count=processes).batches(0, 3))
        for i in range(processes)
    ]
    for step in range(3):
        assert_same(stacked([share[step] for share in shares]), whole[step])


def test_rows_keep_their_places_when_some_take_longer_to_read():
    class Uneven(Numbered):
        def read(self, ids):
            time.sleep(0.02 * (ids[0] % 3))
            return super().read(ids)

    slow, quick = (stacked(training(source, 1).batches(0, 30)) for source in (Uneven(30), Numbered(30)))
    assert_same(slow, quick)
    slow, quick = (stacked(training(source, 37).batches(0, 2)) for source in (Uneven(30), Numbered(30)))
    assert_same(slow, quick)


@pytest.mark.parametrize("first", [1, 5, 6])
def test_a_run_that_starts_later_gets_the_batches_it_would_have_had(first):
    unbroken = list(training(Numbered(30)).batches(0, 7))
    for step, batch in enumerate(training(Numbered(30)).batches(first, 7), start=first):
        assert_same(batch, unbroken[step])


def test_a_finished_run_has_no_more_batches():
    assert list(training(Numbered(30)).batches(7, 7)) == []


@pytest.mark.parametrize(("length", "batch_size"), [(24, 8), (50, 8), (7, 8), (1, 4)])
def test_every_record_is_seen_once_in_every_epoch_whatever_the_batch_size(length, batch_size):
    steps = 3 * length
    seen = numbers(stacked(training(Numbered(length), batch_size).batches(0, steps))["text"])
    for epoch in range(steps * batch_size // length):
        assert sorted(seen[epoch * length : (epoch + 1) * length]) == list(range(length)), epoch


def test_another_seed_or_epoch_crops_an_image_otherwise():
    source = Numbered(1)
    images, _, _ = arrays(training(source), 4)
    others, _, _ = arrays(training(source, seed=1), 4)
    assert len({image.tobytes() for image in (*images, *others)}) == 8


BAD = {
    3: Skip("unreadable shard", "numbered/3"),
    8: Record(b"no image", ("number 8",), "numbered/8"),
    9: Record(np.zeros((8, 8, 3), np.uint8), (), "numbered/9"),
    14: Record(b"nor this", ("number 14",), "numbered/14"),
}


def test_unreadable_records_are_replaced_and_the_others_stay_where_they_were():
    good, mended = arrays(training(Numbered(20)), 60), arrays(training(Numbered(20, BAD)), 60)
    ids, _ = order.Shuffled(0, 20)(np.arange(60))
    bad = np.isin(ids, list(BAD))
    assert bad.sum() == 12
    for part in range(3):
        np.testing.assert_array_equal(mended[part][~bad], good[part][~bad])
    instead = np.array(numbers(mended[1]))[bad]
    assert not set(instead) & set(BAD)
    # From all over the source, not always the same neighbor.
    assert len(set(instead)) > 4


def test_a_replacement_is_chosen_by_the_position_and_the_attempt():
    good = {2, 11, 17}
    source = Numbered(20, {i: Skip("unreadable image", f"numbered/{i}") for i in range(20) if i not in good})
    ids, _ = order.Shuffled(0, 20)(np.arange(20))
    _, tokens, _ = arrays(training(source), 20)
    for position, found in enumerate(numbers(tokens)):
        attempts = (order.substitute(0, position, attempt, range(20)) for attempt in range(100))
        assert found == next(record for record in (int(ids[position]), *attempts) if record in good)


def test_what_is_replaced_is_counted_by_reason_with_an_example():
    training_loader = training(Numbered(20, BAD))
    assert str(training_loader.skips) == "" and training_loader.skips.total == 0
    training_loader.rows(0, 20)
    counts = training_loader.skips.counts
    # More than one each if a replacement is itself unreadable.
    assert counts.keys() == {"unreadable shard", "not an image", "no caption"}
    assert counts["not an image"] >= 2
    assert training_loader.skips.total == sum(counts.values())
    text = str(training_loader.skips)
    assert f"{counts['unreadable shard']} x unreadable shard (such as numbered/3)" in text
    assert f"{counts['no caption']} x no caption (such as numbered/9)" in text
    assert "\n" not in text


def test_counts_from_many_threads_add_up():
    import concurrent.futures

    skips = SkipLog()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: skips.add("bad", str(i)), range(4000)))
    assert skips.counts == {"bad": 4000}


@pytest.mark.parametrize("through", ["rows", "batches"])
def test_data_of_which_nothing_can_be_used_is_an_error_naming_the_reason(through):
    source = Numbered(5, {i: Skip("unreadable image", f"numbered/{i}") for i in range(5)})
    training_loader = training(source)
    with pytest.raises(UserError, match="data.train.*unreadable image.*numbered/") as raised:
        training_loader.rows(0, 8) if through == "rows" else list(training_loader.batches(0, 2))
    assert "\n" not in str(raised.value)


def test_a_fault_in_a_source_is_raised_as_it_is():
    class Faulty(Numbered):
        def read(self, ids):
            raise ZeroDivisionError("a fault of the source's own")

    with pytest.raises(ZeroDivisionError, match="a fault of the source's own"):
        next(training(Faulty(5)).batches(0, 2))


def test_unused_batches_do_not_keep_the_process_alive():
    batches = training(Numbered(50), 32).batches(0, 10_000)
    next(batches)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 5


def test_a_mirrored_image_has_a_mirrored_caption():
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:, : SIZE // 2, 0] = pixels[:, SIZE // 2 :, 2] = 255
    source = Numbered(1, {0: Record(pixels, ("red left of blue",), "0")})
    plain = dataclasses.replace(CONFIG, crop_scale=(1.0, 1.0), flip=True)
    images, tokens, _ = arrays(training(source, config=plain), 200)
    mirrored = np.array([caption == "red right of blue" for caption in captions(tokens)])
    assert {*captions(tokens)} == {"red left of blue", "red right of blue"}
    assert 70 < mirrored.sum() < 130  # 100 +- 7 (one standard deviation)
    assert (images[~mirrored] == pixels).all()
    assert (images[mirrored] == pixels[:, ::-1]).all()


def test_no_image_is_mirrored_unless_the_recipe_says_so():
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:, :3] = 255
    source = Numbered(1, {0: Record(pixels, ("red left of blue",), "0")})
    images, tokens, _ = arrays(training(source, config=dataclasses.replace(CONFIG, crop_scale=(1.0, 1.0))), 50)
    assert (images == pixels).all()
    assert {*captions(tokens)} == {"red left of blue"}


def test_captions_are_wrapped_in_the_recipes_templates():
    config = dataclasses.replace(CONFIG, caption_templates=("a photo of {c}", "{c}"))
    _, tokens, _ = arrays(training(Numbered(30), config=config), 30)
    found = captions(tokens)
    wrapped = [caption for caption in found if caption.startswith("a photo of number")]
    assert 5 < len(wrapped) < 25
    assert all(caption.startswith("number") for caption in found if caption not in wrapped)


@pytest.mark.parametrize("length", [1, 31, 33, 64 * (os.cpu_count() or 1) * 2 + 100])
def test_examples_come_in_the_order_of_their_ids(length):
    ids = np.random.default_rng(0).permutation(length).tolist()
    found = list(loader.examples(Numbered(length), ids, SIZE, PixelsConfig(), SkipLog()))
    assert [number for number, _, _ in found] == ids
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for _, image, _ in found)
    assert [record.captions for _, _, record in found] == [(f"number {i}",) for i in ids]


def test_examples_with_unreadable_images_are_empty_and_counted():
    skips = SkipLog()
    found = list(loader.examples(Numbered(20, BAD), range(20), SIZE, PixelsConfig(), skips))
    assert [number for number, image, record in found if image is None and record is None] == [3, 8, 14]
    # An image without a caption can be classified all the same.
    assert found[9][2].captions == ()
    assert skips.counts == {"unreadable shard": 1, "not an image": 2}


def test_examples_do_not_depend_on_chance():
    first, second = (list(loader.examples(Numbered(10), range(10), SIZE, PixelsConfig(), SkipLog())) for _ in range(2))
    assert all((one[1] == other[1]).all() for one, other in zip(first, second, strict=True))


def test_no_ids_give_no_examples():
    assert list(loader.examples(Numbered(3), [], SIZE, PixelsConfig(), SkipLog())) == []


def test_a_config_says_which_caption_is_taken():
    several = {i: Record(np.zeros((9, 9, 3), np.uint8), ("red. Blue.", "left", "right"), f"many/{i}") for i in range(9)}

    def seen(choice: str) -> list[str]:
        config = dataclasses.replace(CONFIG, captions=choice)
        return captions(training(Numbered(9, several), config=config).rows(0, 27)["text"])

    assert set(seen("first")) == {"red . blue ."}
    assert set(seen("random")) == {"red . blue .", "left", "right"}
    assert set(seen("sentence")) == {"red .", "blue .", "left", "right"}
    # Three epochs: each of a record's captions once.
    assert sorted(seen("all")) == sorted(["red . blue .", "left", "right"] * 9)


def test_words_are_dropped_where_a_config_says_so():
    long = {i: Record(np.zeros((9, 9, 3), np.uint8), ("red left right of blue",), f"long/{i}") for i in range(9)}
    whole, part = (
        captions(training(Numbered(9, long), config=dataclasses.replace(CONFIG, drop_words=p)).rows(0, 90)["text"])
        for p in (0.0, 0.5)
    )
    assert set(whole) == {"red left right of blue"}
    kept = [len(caption.split()) for caption in part]
    assert 1 == min(kept) < max(kept) <= 5 and 2 < sum(kept) / 90 < 3


def test_images_are_augmented_where_a_config_says_so():
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(gray=1.0))
    colored, gray = arrays(training(Numbered(9)), 9)[0], arrays(training(Numbered(9), config=config), 9)[0]
    assert (gray == gray[..., :1]).all() and not (colored == colored[..., :1]).all()
    with pytest.raises(UserError, match="data.augment.gray: p=2.0"):
        training(Numbered(9), config=dataclasses.replace(CONFIG, augment=AugmentConfig(gray=2.0)))


def test_a_reader_that_is_left_in_the_middle_does_not_keep_the_process_from_ending():
    program = """
import sys
sys.path[:0] = ["tests/data", "tests/helpers"]
from test_loader import Numbered, training
batches = training(Numbered(50), 8).batches(0, 10**6)
print(next(batches)["image"].shape)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.returncode == 0 and ran.stdout == "(8, 8, 8, 3)\n"


def test_replacements_do_not_count_towards_the_rate():
    # One chunk of ten is completely bad, and so are nine of ten replacements, but only a tenth of the records.
    ends = np.arange(1, 11) * 100
    bad = {i: Skip("unreadable shard", f"numbered/{i}") for i in range(100)}
    config = dataclasses.replace(CONFIG, max_skip_rate=0.11)
    loader = training(Numbered(1000, bad, chunk_ends=ends), 50, config, skips=SkipLog(0.11, 1000))
    for step in range(60):
        loader.rows(step * 50, 50)
    assert loader.skips.counts["unreadable shard"] > 8 * 300


def test_too_many_unusable_records_stop_the_batches():
    bad = {i: Skip("unreadable shard", f"numbered/{i}") for i in range(0, 100, 5)}
    loader = training(Numbered(100, bad), 50, skips=SkipLog(0.1))
    with pytest.raises(UserError, match=r"of the last 1,000 records cannot be used, more than data.max_skip_rate=0.1"):
        list(loader.batches(0, 100))
