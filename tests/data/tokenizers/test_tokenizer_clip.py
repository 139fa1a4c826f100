"""CLIP's token ids compared with a slow tokenizer written from its description."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import pathlib
import sys

import ftfy
import numpy as np
import pytest
from tokenizer_reference import STRINGS, Reference, ids_of, merges_in, random_strings, row, write_small

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers.clip import END, ClipTokenizer


@pytest.fixture(scope="module", params=["small", "openai"])
def file(request, tmp_path_factory) -> pathlib.Path:
    if request.param == "small":
        return write_small(tmp_path_factory.mktemp("small"))
    return request.getfixturevalue("shared_data") / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def tokenizer(file) -> tokenizers.Tokenizer:
    return tokenizers.load(file)


@pytest.fixture(scope="module")
def openai(shared_data) -> tokenizers.Tokenizer:
    return tokenizers.load(shared_data / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tokenizers.Tokenizer:
    return tokenizers.load(write_small(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def reference(file) -> Reference:
    merges = merges_in(file)
    return Reference(ids_of(merges), merges)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [49406, 3306, 1002, 49407]),
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("", [49406, 49407]),
        ("!", [49406, 256, 49407]),
    ],
)
def test_published_ids(openai, text, ids):
    assert row(openai, text, 77) == ids


def test_layout_of_the_published_vocabulary(openai):
    assert (openai.vocab_size, openai.start_id, openai.end_id, openai.pad_id) == (49408, 49406, 49407, 0)
    assert openai.mask_id is None


@pytest.mark.parametrize("text", STRINGS, ids=range(len(STRINGS)))
def test_ids_equal_the_reference(tokenizer, reference, text):
    assert row(tokenizer, text, 400) == reference(text)


def test_ids_equal_the_reference_on_random_strings(tokenizer, reference):
    texts = random_strings(4000)
    tokens, ends = tokenizer(texts, 700)
    for text, ids, end in zip(texts, tokens, ends, strict=True):
        assert ids[: end + 1].tolist() == reference(text), repr(text)


@pytest.mark.parametrize("pattern", ["a{}b", " {}{} ", "\x1b[3{}m", "&{}amp;x", "&#3{};", "a {}\n<"])
def test_every_ascii_character_is_cleaned_as_by_the_reference(tokenizer, reference, pattern):
    for code in range(128):
        text = pattern.replace("{}", chr(code))
        assert row(tokenizer, text, 60) == reference(text), repr(text)


@pytest.mark.parametrize(
    "text",
    [
        "the cat's photo, " * 500,
        "\u65e5\u672c\u8a9e caf\u00e9 & " * 500,
        "&" + "amp;" * 100 + " the cat",
        "<b> &" + "amp;" * 100,
        "thecat" * 1000,
        "12 " * 5000,
    ],
)
def test_long_text_keeps_its_first_tokens_and_the_end(tokenizer, reference, text):
    full = reference(text)
    expected = full if len(full) <= 77 else [*full[:76], full[-1]]
    assert row(tokenizer, text, 77) == expected


@pytest.mark.parametrize(("context_length", "words"), [(2, 0), (3, 1), (5, 3), (6, 4), (7, 4)])
def test_truncation_keeps_the_end_token_in_the_last_place(small, context_length, words):
    tokens, ends = small(["cat cat cat cat", ""], context_length)
    (cat,) = row(small, "cat", 5)[1:-1]
    start, end = small.start_id, small.end_id
    pad = context_length - 2 - words
    assert tokens.tolist() == [[start, *[cat] * words, end] + [0] * pad, [start, end] + [0] * (context_length - 2)]
    assert ends.tolist() == [words + 1, 1]


def test_the_end_is_the_last_one_where_the_caption_spells_one(small):
    tokens, ends = small(["cat <|endoftext|> cat", "!<|endoftext|>"], 16)
    assert tokens[0].tolist().count(small.end_id) == 2 and ends[0] == 4
    assert tokens[1].tolist().count(small.end_id) == 1  # in the midst of punctuation it is no token


HOSTILE = {
    "10 MB of words": "a photo " * 1_250_000,
    "10 MB word": "a" * 10_000_000,
    "10 MB of spaces": " " * 10_000_000 + "x",
    "10 MB of NUL": "\0" * 10_000_000,
    "lone surrogates": "\ud83d" * 100_000 + "\ude02" * 100_000,
    "nested entities": "&" + "amp;" * 1_000_000,
    "nested entities beside an accent": "\u00e9&" + "amp;#38;#x26;" * 100_000,
    "endless number": "&#" + "1" * 1_000_000 + ";",
    "ampersands": "&" * 1_000_000,
    "escapes": "\x1b[" + ";1" * 100_000,
    "combining marks": "a" + "\u0301\u0327" * 100_000,
    "mojibake": "Ã© Ã¨ â€œ" * 100_000,
    "direction marks": "\u202e\u0639\u0631\u0628\u202c" * 100_000,
    "control characters": "".join(map(chr, range(32))) * 10_000,
    "every plane": "".join(map(chr, range(0, 0x110000, 97))),
}


def calls_in(function) -> int:
    """How many Python functions run, which measures work as time does, but always alike."""
    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_little_work_and_of_fixed_length(small, name):
    text = HOSTILE[name]
    ids = row(small, text, 77)
    assert ids[0] == small.start_id and ids[-1] == small.end_id
    assert ids == row(small, text[: 32 * 77], 77)
    assert calls_in(lambda: small([text], 77)) < 100_000


def test_nested_entities_take_no_pass_each(small):
    # With a pass for each of the thousands of levels it would be 600,000.
    assert calls_in(lambda: small([HOSTILE["nested entities beside an accent"]], 512)) < 100_000


def test_a_number_too_long_for_python_is_a_replacement_character(small):
    assert row(small, "\u00e9 &#" + "1" * 5000 + "; x", 512) == row(small, "\u00e9 \ufffd x", 512)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("A photo of THE cat!", "a photo of the cat !"),
        ("caf\u00e9 \u65e5\u672c \U0001f602", "caf\u00e9 \u65e5\u672c \U0001f602"),
        ("", ""),
        ("a <|endoftext|> b", "a <|endoftext|>b"),
    ],
)
def test_decode_gives_the_words_back(small, text, decoded):
    tokens, _ = small([text], 40)
    assert small.decode(tokens[0]) == decoded
    assert small.decode(tokens[0].tolist()) == decoded


def test_decode_takes_tokens_without_start_and_end(small):
    assert small.decode(row(small, "the cat", 9)[1:-1]) == "the cat"


@pytest.mark.parametrize("pad", [END, "b"])
def test_another_padding_token_changes_only_what_follows_the_end(small, pad):
    vocabulary = json.loads(small.to_json())["model"]["vocab"]
    padded = ClipTokenizer(vocabulary, [tuple(merge) for merge in json.loads(small.to_json())["model"]["merges"]], pad)
    assert padded.pad_id == vocabulary[pad] != 0
    texts = ["a cat", "", "a cat " * 9, "cat <|endoftext|>"]
    (plain, ends), (tokens, same_ends) = small(texts, 9), padded(texts, 9)
    after = np.arange(9) > ends[:, None]
    assert after.any()
    np.testing.assert_array_equal(tokens, np.where(after, padded.pad_id, plain))
    np.testing.assert_array_equal(same_ends, ends)
    assert [padded.decode(row) for row in tokens[:3]] == [small.decode(row) for row in plain[:3]]
    again = tokenizers.from_json(padded.to_json())
    assert again.pad_id == padded.pad_id and again.to_json() == padded.to_json()
    with pytest.raises(ValueError, match="the pad token '<pad>' is not in its vocabulary"):
        ClipTokenizer(vocabulary, [], "<pad>")


def test_decode_refuses_ids_outside_the_vocabulary(small):
    for token in (-1, small.vocab_size):
        with pytest.raises(KeyError):
            small.decode([token])


ALONE = "\u00a9\u00ae\u00b0\u00b7\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u2122" + "".join(
    map(chr, range(0xC0, 0x100))
)


@pytest.mark.parametrize("before", ["", "a", "\u00e9 '"])
def test_characters_that_stand_alone_are_cleaned_as_by_ftfy(small, before):
    after = [chr(code) for code in (9, 10, 12, 13, *range(32, 127))]
    texts = [before + "".join(parts) for parts in itertools.product(ALONE, after, ["", "  y"])]
    # ftfy does not change text that it has repaired.
    tokens, mended = small(texts, 24)[0], small([ftfy.fix_text(text) for text in texts], 24)[0]
    assert not [text for text, one, other in zip(texts, tokens, mended, strict=True) if (one != other).any()]


def test_words_are_forgotten_before_they_fill_the_memory(small):
    # Each of these words is new, some 200,000 in all: more than are remembered.
    for start in range(0, 200_000, 20_000):
        words = [f"w{number:x}" for number in range(start, start + 20_000)]
        small(words, 12)
    tokens, ends = small(["w0", "w30d3f", "cat " + "w" * 40], 60)
    fresh = tokenizers.from_json(small.to_json())
    np.testing.assert_array_equal(tokens, fresh(["w0", "w30d3f", "cat " + "w" * 40], 60)[0])
    assert len(small._known) < 1 << 18


def test_threads_that_meet_the_same_new_words_give_the_same_ids(small):
    texts = random_strings(400)
    expected = small(texts, 77)[0]
    for _ in range(3):
        fresh = tokenizers.from_json(small.to_json())
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            parts = pool.map(lambda start, fresh=fresh: fresh(texts[start:] + texts[:start], 77)[0], range(0, 400, 50))
            for start, tokens in zip(range(0, 400, 50), parts, strict=True):
                np.testing.assert_array_equal(np.roll(tokens, start, axis=0), expected)
