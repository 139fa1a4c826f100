"""CLIP's tokenizer against a slow one written from its description, and every way to come by a vocabulary."""

from __future__ import annotations

import concurrent.futures
import gzip
import html
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
import unicodedata

import ftfy
import numpy as np
import pytest

from jaxclip.data import tokenizers
from jaxclip.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2'
# A vocabulary small enough to read: what the words below are spelled with, and pairs that compete for a letter.
MERGES = """t h  th e</w>  a n  an d</w>  c a  ca t</w>  o f</w>  p h  ph o  t o  t o</w>  pho to</w>  r e  re d</w>
' s</w>  ' t</w>  i n  in g</w>  a t</w>  l l</w>  ' ll</w>  ! !  ! !</w>  !! !</w>  . .  .. .</w>  a a  aa aa  Ã ©
Ã ©</w>  c a</w>  h e  o n  1 2  ð Ł  ðŁ ĺ  ðŁĺ Ĥ</w>  e n  en d  o f  t e  x t</w>  te xt</w>  < |"""

STRINGS = [
    "",
    " ",
    "a",
    "hello world",
    "a photo of a cat",
    "A Photo Of THE Cat.",
    "the cat's toy, the cats' toys; it's they'll we've I'm I'd don't WE'RE",
    "'s 't 'll ''s s' 'sad'tin",
    "\u2019s \u2018quoted\u2019 \u201cdouble\u201d",
    "'\u017f it'\u017f \u017f",
    "12 123 3.14 1,000,000 x2 2x \u00bd \u00b2 \u2167 \u0664\u0662",
    "!!! ?!? ... --- === ~~~~~~~~ $5.00 100% #tag @user a_b c-d",
    "http://example.com/a?b=c&d=e#f",
    "caf\u00e9 CAF\u00c9 cafe\u0301 na\u00efve \u00f1and\u00fa Stra\u00dfe",
    "\u0130stanbul \u039f\u0394\u039f\u03a3 \u03c3\u03c2 \u01c5",
    "\ufb01re \ufb05 \ufb06 \uff26\uff35\uff2c\uff2c \uff11\uff12 \uff76\uff9e",
    "\u65e5\u672c\u8a9e\u306e\u6587 \u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f602 \U0001f602\U0001f602\U0001f602",
    "\u2764\ufe0f \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1fa\U0001f1f8",
    "fish &amp; chips &lt;b&gt; &#39;s &eacute; &EACUTE; &hellip; &nbsp;&nbsp;x",
    "&amp;amp;lt; &amp;amp;amp; &amp &copy &notit; &#x1F602; &#0; &#xd800; &#55555555555;",
    "<i>fish &amp; chips</i> &amp;amp;amp; &eacute;",
    "line one &amp;\nline <two> &amp;amp;amp;\r\nline three &amp;amp;amp;",
    "tabs\tand\x0bodd\x0cspaces\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000end",
    "nul\x00 bell\x07 \x1b[31mred\x1b[0m \x7f \ufeff bom \u200bzero \u206a \ufffc",
    "lone \ud83d \ude02 pair \ud83d\ude02",
    "sÃ³ voilÃ le Ã© â€œquoteâ€\x9d â€™ \x93c1\x94",
    "a\u0345b !\u0345! \u0345 \u03b1\u0345",
    "\u0301\u0327 o\u0327\u0301 \u1e9e \U0001d54f",
    "a <|endoftext|> b<|startoftext|>c <|ENDOFTEXT|> !<|endoftext|> <|endoftext|>! <|\u017ftartoftext|>",
    "<|endoftext|><|endoftext|>'s<|startoftext|>",
    "a" * 70,
    "supercalifragilisticexpialidocious" * 2,
    "</w> the</w> <| |>",
    "\u202eright to left\u202c \U000e0067\U000e0062 \ue000 \U000f0000",
]


class Reference:
    """OpenAI's algorithm as plainly as it can be put, from a vocabulary and its merges."""

    def __init__(self, ids: dict[str, int], merges: list[tuple[str, str]]):
        self.ids = ids
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = re.sub(r"\s+", " ", text).strip().lower()
        inner = itertools.chain.from_iterable(self.word(word) for word in words_of(text))
        return [self.ids[START], *inner, self.ids[END]]

    def word(self, word: str) -> list[int]:
        if word in (START, END):
            return [self.ids[word]]
        if word not in self.known:
            self.known[word] = [self.ids[part] for part in self.parts(word)]
        return self.known[word]

    def parts(self, word: str) -> list[str]:
        parts = [VISIBLE[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while True:
            ranked = [(self.ranks[pair], pair) for pair in itertools.pairwise(parts) if pair in self.ranks]
            if not ranked:
                return parts
            pair, merged, at = min(ranked)[1], [], 0
            while at < len(parts):
                step = 2 if tuple(parts[at : at + 2]) == pair else 1
                merged.append("".join(parts[at : at + step]))
                at += step
            parts = merged


# The character for each byte: itself where Latin-1 shows it, else the next one free from 256 on.
SHOWN = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
HIDDEN = [byte for byte in range(256) if byte not in SHOWN]
VISIBLE = {byte: chr(byte) for byte in SHOWN} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
ALPHABET = list(VISIBLE.values())
SPECIAL_OR_CONTRACTION = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'(s|t|re|ve|m|ll|d)", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """Special tokens, contractions, runs of letters, single numbers, runs of anything else but white space."""
    words, at = [], 0
    while at < len(text):
        if match := SPECIAL_OR_CONTRACTION.match(text, at):
            end = match.end()
        elif kind(text[at]) in ("space", "nothing"):
            at += 1
            continue
        else:
            end = at + 1
            while kind(text[at]) != "number" and end < len(text) and kind(text[end]) == kind(text[at]):
                end += 1
        words.append(text[at:end])
        at = end
    return words


def kind(character: str) -> str:
    if character == "\u0345":  # matches neither letters nor all but letters where case is ignored: its capital is one
        return "nothing"
    category = unicodedata.category(character)[0]
    return "space" if character.isspace() else {"L": "letter", "N": "number"}.get(category, "other")


def merges_of(text: str) -> list[tuple[str, str]]:
    return [tuple(merge.split()) for merge in re.split("  |\n", text) if len(merge.split()) == 2]


def ids_of(merges: list[tuple[str, str]]) -> dict[str, int]:
    tokens = [*ALPHABET, *(c + "</w>" for c in ALPHABET), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


@pytest.fixture(scope="module")
def openai_file() -> pathlib.Path:
    for folder in pathlib.Path(__file__).resolve().parents:
        path = folder / "shared" / "data" / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return path
    pytest.skip("OpenAI's vocabulary is not in ../shared/data")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("small") / "bpe.txt.gz"
    lines = [HEADER, *map(" ".join, merges_of(MERGES)), ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.fixture(scope="module")
def small(small_file) -> tokenizers.Tokenizer:
    return tokenizers.load(small_file)


@pytest.fixture(scope="module", params=["small", "openai"])
def file(request) -> pathlib.Path:
    return request.getfixturevalue(f"{request.param}_file")


@pytest.fixture(scope="module")
def tokenizer(file) -> tokenizers.Tokenizer:
    return tokenizers.load(file)


@pytest.fixture(scope="module")
def reference(file) -> Reference:
    merges = merges_in(file)
    return Reference(ids_of(merges), merges)


def merges_in(file: pathlib.Path) -> list[tuple[str, str]]:
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1:48895]
    return [tuple(line.split()) for line in lines if line]


def row(tokenizer, text: str, context_length: int) -> list[int]:
    """The ids of one text up to its end, which must be where the tokenizer says."""
    tokens, ends = tokenizer([text], context_length)
    assert tokens.shape == (1, context_length) and tokens.dtype == ends.dtype == np.int32
    assert not tokens[0, ends[0] + 1 :].any()
    return tokens[0, : ends[0] + 1].tolist()


def random_strings(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = [(0, 0x80), (0x80, 0x250), (0x370, 0x600), (0x2000, 0x2800), (0x3000, 0xA000), (0x1F300, 0x1FA00)]
    pieces = list(itertools.chain.from_iterable(re.split("( )", text) for text in STRINGS))
    assigned = [[chr(c) for c in range(*r) if unicodedata.category(chr(c)) != "Cn"] for r in ranges]

    def piece() -> str:
        if rng.random() < 0.5:
            return rng.choice(pieces)
        return "".join(rng.choices(rng.choice(assigned), k=rng.randint(1, 6)))

    return [rng.choice(["", " "]).join(piece() for _ in range(rng.randint(1, 9))) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [49406, 3306, 1002, 49407]),
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("", [49406, 49407]),
        ("!", [49406, 256, 49407]),
    ],
)
def test_published_ids(openai_file, text, ids):
    assert row(tokenizers.load(openai_file), text, 77) == ids


def test_layout_of_the_published_vocabulary(openai_file):
    tokenizer = tokenizers.load(openai_file)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (49408, 49406, 49407, 0)


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


def test_no_texts_give_no_rows(small):
    tokens, ends = small([], 77)
    assert tokens.shape == (0, 77) and ends.shape == (0,)


def test_one_string_in_place_of_several_is_refused(small):
    with pytest.raises(TypeError):
        small("cat", 77)


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


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_quick_and_of_fixed_length(small, name):
    started = time.monotonic()
    ids = row(small, HOSTILE[name], 77)
    assert time.monotonic() - started < 0.5  # a hundredth of it on an idle machine
    assert ids[0] == small.start_id and ids[-1] == small.end_id


def test_nested_entities_take_no_pass_each(small):
    started = time.monotonic()
    row(small, HOSTILE["nested entities beside an accent"], 512)  # 5 s where each of 5,000 levels has its pass
    assert time.monotonic() - started < 0.5


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


def test_decode_refuses_ids_outside_the_vocabulary(small):
    for token in (-1, small.vocab_size):
        with pytest.raises(KeyError):
            small.decode([token])


def huggingface_json(merges, form) -> str:
    """As Hugging Face's CLIP has it: special tokens that are cut out first, its own way to words and to lower case."""
    ids = ids_of(merges)
    special = [{"id": ids[token], "content": token, "special": True} for token in (START, END)]
    model = {
        "type": "BPE",
        "unk_token": END,
        "end_of_word_suffix": "</w>",
        "vocab": ids,
        "merges": [form(pair) for pair in merges],
    }
    return json.dumps({"version": "1.0", "added_tokens": special, "normalizer": {"type": "Lowercase"}, "model": model})


def write_openai_text(folder, merges):
    (folder / "bpe.txt").write_text("\n".join([HEADER, *map(" ".join, merges)]), encoding="utf-8")
    return folder / "bpe.txt"


def write_tokenizer_json(folder, merges):
    (folder / "tokenizer.json").write_text(huggingface_json(merges, " ".join))
    return folder / "tokenizer.json"


def write_tokenizer_json_with_pairs(folder, merges):
    (folder / "tokenizer.json").write_text(huggingface_json(merges, list))
    return folder


def write_pair(folder, merges):
    (folder / "vocab.json").write_text(json.dumps(ids_of(merges)))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    return folder


def write_our_own(folder, merges):
    path = folder / "saved.json"
    path.write_text(tokenizers.load(write_openai_text(folder, merges)).to_json())
    return path


@pytest.mark.parametrize(
    "write",
    [
        write_openai_text,
        write_tokenizer_json,
        write_tokenizer_json_with_pairs,
        write_pair,
        lambda folder, merges: write_pair(folder, merges) / "vocab.json",
        lambda folder, merges: write_pair(folder, merges) / "merges.txt",
        write_our_own,
    ],
    ids=["text", "tokenizer.json", "folder", "pair", "vocab.json", "merges.txt", "saved"],
)
def test_all_forms_of_a_vocabulary_give_the_same_ids(file, tokenizer, tmp_path, write):
    loaded = tokenizers.load(write(tmp_path, merges_in(file)))
    assert (loaded.vocab_size, loaded.start_id, loaded.end_id) == (
        tokenizer.vocab_size,
        tokenizer.start_id,
        tokenizer.end_id,
    )
    for ours, theirs in zip(loaded(STRINGS, 90), tokenizer(STRINGS, 90), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_of_openais_file_only_the_first_48894_merges_are_used(tmp_path):
    pairs = [f"{left} {right}</w>" for left in ALPHABET for right in ALPHABET]
    (tmp_path / "long.txt").write_text("\n".join([HEADER, *pairs]), encoding="utf-8")
    tokenizer = tokenizers.load(tmp_path / "long.txt")
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)


def test_json_holds_all_there_is(tokenizer):
    text = tokenizer.to_json()
    again = tokenizers.Tokenizer.from_json(text)
    assert again.to_json() == text
    np.testing.assert_array_equal(again(STRINGS, 77)[0], tokenizer(STRINGS, 77)[0])


def bpe_json(**changes) -> bytes:
    content = json.loads(huggingface_json(merges_of(MERGES), list))
    content["model"].update(changes)
    return json.dumps(content).encode()


WRONG = {
    "not gzip inside": (b"\x1f\x8b" + b"nonsense" * 9, "cannot be read"),
    "cut short": (gzip.compress(random.Random(0).randbytes(5000))[:-2000], "cannot be read"),
    "damaged": (gzip.compress(b"x" * 5000)[:-8] + b"\0" * 8, "cannot be read"),
    "too large unpacked": (gzip.compress(b"\0" * (65 << 20)), "MiB"),
    "binary": (b"\x89PNG\xff\xfe", "not text"),
    "empty": (b"", "#version"),
    "prose": (b"It was a dark\nand stormy night.\n", "#version"),
    "a line of three": (HEADER.encode() + b"\nt h\nt h e\n", "line 3"),
    "another byte-level BPE": (HEADER.encode() + b"\nt h\nh e\n", "</w>"),
    "a merge of nothing known": (HEADER.encode() + b"\nzz t</w>\n", "zz"),
    "broken JSON": (b'{"model": ', "line 1"),
    "deep JSON": (b'{"model":' * 100_000, "not of its form"),
    "vocab.json alone": (json.dumps(ids_of([])).encode(), "merges.txt"),
    "unigram": (bpe_json(type="Unigram"), "another kind"),
    "GPT-2": (bpe_json(end_of_word_suffix=""), "another kind"),
    "no merges": (bpe_json(merges=None), "not of its form"),
    "merges of numbers": (bpe_json(merges=[[1, 2]]), "merge 1 2"),
    "merges of lists": (bpe_json(merges=[[[], []]]), "not of its form"),
    "ids with a hole": (bpe_json(vocab={**ids_of([]), "zz": 10**12}), "ids are not"),
    "negative ids": (bpe_json(vocab={**ids_of([]), "a": -1}), "ids are not"),
    "ids of another type": (bpe_json(vocab={**ids_of([]), "a": "0"}), "ids are not"),
    "no vocabulary": (bpe_json(vocab={}), "ids are not"),
    "a byte without an id": (
        bpe_json(vocab={t.replace("b", "bb"): i for t, i in ids_of(merges_of(MERGES)).items()}),
        "no 'b'",
    ),
    "model of another type": (b'{"model": 3}', "not of its form"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_vocabulary_is_refused_in_one_line(tmp_path, name):
    content, reason = WRONG[name]
    path = tmp_path / "vocabulary"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        tokenizers.load(path)
    message = str(caught.value)
    assert str(path) in message and reason in message and "\n" not in message and len(message) < 600


@pytest.mark.parametrize("there", [False, True], ids=["nothing", "empty folder"])
def test_where_no_vocabulary_is_the_message_says_where_to_get_it(tmp_path, there):
    path = tmp_path / "vocabulary"
    if there:
        path.mkdir()
    with pytest.raises(UserError, match=r"bpe_simple_vocab_16e6\.txt\.gz in the openai/CLIP repository") as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "3", '{"model": {}}'])
def test_json_of_another_thing_is_refused(text):
    with pytest.raises(UserError, match="stored tokenizer"):
        tokenizers.Tokenizer.from_json(text)


def captions() -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcde\u00e9\u65e5", k=rng.randint(1, 6))) for _ in range(200)]
    return [" ".join(rng.choices(words, k=6)) + "." for _ in range(400)]


def test_a_trained_vocabulary_is_laid_out_as_clips():
    tokenizer = tokenizers.train(captions(), 700)
    tokens = json.loads(tokenizer.to_json())["model"]["vocab"]
    in_order = sorted(tokens, key=tokens.get)
    assert tokenizer.vocab_size == len(in_order) == 700
    assert in_order[:512] == [*ALPHABET, *(c + "</w>" for c in ALPHABET)]
    assert in_order[-2:] == [START, END]
    assert (tokenizer.start_id, tokenizer.end_id) == (698, 699)


def test_training_does_not_depend_on_chance_or_order():
    text = tokenizers.train(captions(), 700).to_json()
    assert tokenizers.train(captions(), 700).to_json() == text
    assert tokenizers.train(iter(captions()[::-1]), 700).to_json() == text


def test_a_trained_vocabulary_spells_as_the_reference_does():
    tokenizer = tokenizers.train(captions(), 700)
    model = json.loads(tokenizer.to_json())["model"]
    reference = Reference(model["vocab"], [tuple(pair) for pair in model["merges"]])
    for text in [*captions()[:50], *STRINGS]:
        assert row(tokenizer, text, 400) == reference(text), repr(text)


def test_words_that_recur_become_one_token_and_others_are_spelled():
    tokenizer = tokenizers.train(["a red circle", "A RED square", "the red circle"], 5000)
    assert len(row(tokenizer, "Red circle", 77)) == 4
    assert len(row(tokenizer, "zebra", 77)) == 7
    assert tokenizer.decode(row(tokenizer, "z\u00e9bre \U0001f993", 77)) == "z\u00e9bre \U0001f993"
    assert 514 < tokenizer.vocab_size < 560


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["\ud83d"], ["<|endoftext|>"]])
def test_from_next_to_nothing_comes_the_bytes_alone(texts):
    assert tokenizers.train(texts, 1000).vocab_size == 514


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    assert tokenizers.train(captions(), 514).vocab_size == 514
    with pytest.raises(UserError, match=r"at least 514, not 513"):
        tokenizers.train(captions(), 513)


def test_calls_from_several_threads_give_the_same_ids(tokenizer):
    texts = random_strings(200)
    expected = tokenizer(texts, 77)[0]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for tokens, _ in pool.map(lambda _: tokenizer(texts, 77), range(8)):
            np.testing.assert_array_equal(tokens, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_it_starts_no_threads_and_works_silently_in_a_fork():
    program = """
import os
from jaxclip.data import tokenizers
threads = len(os.listdir("/proc/self/task"))
tokenizer = tokenizers.train(["a red circle"] * 999, 600)
before = tokenizer(["red"] * 999, 9)[0]
assert len(os.listdir("/proc/self/task")) == threads
child = os.fork()
same = (tokenizer(["red"] * 999, 9)[0] == before).all()
if not child:
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=pathlib.Path(__file__).parents[1],
        env={name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
