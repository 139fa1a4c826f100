"""The file formats of CLIP's vocabulary, and the errors for invalid files."""

from __future__ import annotations

import gzip
import json
import pathlib
import random

import numpy as np
import pytest
from tokenizer_reference import (
    ALPHABET,
    END,
    HEADER,
    MERGES,
    START,
    STRINGS,
    ids_of,
    merges_in,
    merges_of,
    write_small,
)

from jaxclip.data import tokenizers
from jaxclip.errors import UserError


@pytest.fixture(scope="module", params=["small", "openai"])
def file(request, tmp_path_factory) -> pathlib.Path:
    if request.param == "small":
        return write_small(tmp_path_factory.mktemp("small"))
    return request.getfixturevalue("shared_data") / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def tokenizer(file) -> tokenizers.Tokenizer:
    return tokenizers.load(file)


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
    again = tokenizers.from_json(text)
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
    "deep JSON": (b'{"model":' * 100_000, "invalid structure"),
    "vocab.json alone": (json.dumps(ids_of([])).encode(), "merges.txt"),
    "a unigram with the vocabulary of a BPE": (bpe_json(type="Unigram"), "missing field"),
    "no merges": (bpe_json(merges=None), "invalid structure"),
    "merges of numbers": (bpe_json(merges=[[1, 2]]), "merge 1 2"),
    "merges of lists": (bpe_json(merges=[[[], []]]), "invalid structure"),
    "ids with a hole": (bpe_json(vocab={**ids_of([]), "zz": 10**12}), "ids are not"),
    "negative ids": (bpe_json(vocab={**ids_of([]), "a": -1}), "ids are not"),
    "ids of another type": (bpe_json(vocab={**ids_of([]), "a": "0"}), "ids are not"),
    "no vocabulary": (bpe_json(vocab={}), "ids are not"),
    "a byte without an id": (
        bpe_json(vocab={t.replace("b", "bb"): i for t, i in ids_of(merges_of(MERGES)).items()}),
        "no 'b'",
    ),
    "model of another type": (b'{"model": 3}', "invalid structure"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_than_vocabularies_are_refused_in_one_line(tmp_path, name):
    content, reason = WRONG[name]
    path = tmp_path / "vocabulary"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        tokenizers.load(path)
    message = str(caught.value)
    assert str(path) in message and reason in message and "\n" not in message and len(message) < 600


@pytest.mark.parametrize("there", [False, True], ids=["nothing", "empty folder"])
def test_the_message_for_a_missing_vocabulary_says_where_to_get_it(tmp_path, there):
    path = tmp_path / "vocabulary"
    if there:
        path.mkdir()
    with pytest.raises(UserError, match=r"bpe_simple_vocab_16e6\.txt\.gz in the openai/CLIP repository") as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "3", '{"model": {}}'])
def test_other_json_is_refused(text):
    with pytest.raises(UserError, match="stored tokenizer"):
        tokenizers.from_json(text)
