"""Properties common to all tokenizers, and the detection of their kind by `load`."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from paths import MODELS, ROOT
from tokenizer_reference import STRINGS, random_strings, write_small

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import virtex, wordpiece
from jaxclip.data.tokenizers.clip import ClipTokenizer
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxclip.errors import UserError

MODEL = MODELS / "siglip_form.model"
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat"]


@pytest.fixture(scope="module", params=["clip", "wordpiece", "sentencepiece", "virtex"])
def tokenizer(request, tmp_path_factory) -> tokenizers.Tokenizer:
    if request.param == "clip":
        return tokenizers.load(write_small(tmp_path_factory.mktemp("small")))
    if request.param == "virtex":
        return virtex.train(STRINGS, 900)
    return wordpiece.train(STRINGS, 600) if request.param == "wordpiece" else tokenizers.load(MODEL)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tokenizers.Tokenizer:
    return tokenizers.load(write_small(tmp_path_factory.mktemp("small")))


def test_each_is_a_tokenizer(tokenizer):
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    assert 0 <= tokenizer.end_id < tokenizer.vocab_size and 0 <= tokenizer.pad_id < tokenizer.vocab_size


def test_no_string_fails_and_every_id_is_in_the_vocabulary(tokenizer):
    hostile = [
        "\0" * 9,
        "\ud83d",
        "\ude02\ud83d",
        "\ud83d\ude02",
        "\x1b[31m",
        "\ufffe\uffff",
        "\u2581\u2581",
        "[SEP]</s><pad>",
    ]
    hostile += ["".join(map(chr, range(0, 0x110000, 4099))), *random_strings(300), *STRINGS]
    tokens, ends = tokenizer(hostile, 77)
    assert tokens.dtype == ends.dtype == np.int32 and tokens.shape == (len(hostile), 77)
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab_size
    assert (tokens[np.arange(len(ends)), ends] == tokenizer.end_id).all()
    for ids in tokens:
        tokenizer.decode(ids)


@pytest.mark.parametrize("unit", ["a photo ", "a", " ", "\0", "\u65e5", "\ud83d", "&amp;"])
def test_of_ten_megabytes_only_the_beginning_is_read(tokenizer, unit):
    text = unit * (10_000_000 // len(unit))
    whole, beginning = tokenizer([text], 77), tokenizer([text[: 32 * 77]], 77)
    np.testing.assert_array_equal(whole[0], beginning[0])
    np.testing.assert_array_equal(whole[1], beginning[1])


@pytest.mark.parametrize("context_length", [2, 5, 30])
def test_a_row_does_not_depend_on_the_others(tokenizer, context_length):
    texts = [*STRINGS, *random_strings(50)]
    tokens, ends = tokenizer(texts, context_length)
    for text, ids, end in zip(texts, tokens, ends, strict=True):
        alone = tokenizer([text], context_length)
        assert (alone[0].tolist(), alone[1].tolist()) == ([ids.tolist()], [end]), repr(text)


def test_what_is_written_into_a_row_changes_no_other(tokenizer):
    first, again = tokenizer(["a red cat"] * 2, 9)[0], tokenizer(["a red cat"], 9)[0]
    first[0] += 1
    np.testing.assert_array_equal(first[1:], again)
    np.testing.assert_array_equal(tokenizer(["a red cat"], 9)[0], again)


def test_no_texts_give_no_rows(tokenizer):
    tokens, ends = tokenizer([], 77)
    assert tokens.shape == (0, 77) and ends.shape == (0,)
    assert tokens.dtype == ends.dtype == np.int32


def test_one_string_in_place_of_several_is_refused(tokenizer):
    with pytest.raises(TypeError):
        tokenizer("cat", 77)


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer, wrong):
    with pytest.raises(KeyError):
        tokenizer.decode([tokenizer.pad_id, wrong, 5])


def test_json_holds_all_there_is(tokenizer, tmp_path):
    text = tokenizer.to_json()
    again = tokenizers.from_json(text)
    assert again.to_json() == text and type(again) is type(tokenizer)
    for name in ("vocab_size", "start_id", "end_id", "pad_id", "mask_id"):
        assert getattr(again, name) == getattr(tokenizer, name)
    (tmp_path / "tokenizer.json").write_text(text)
    for other in (again, tokenizers.load(tmp_path)):
        for ours, theirs in zip(other(STRINGS, 77), tokenizer(STRINGS, 77), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def write_vocabulary(path: pathlib.Path) -> None:
    path.write_text("\n".join(BERT))


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("spiece.model", lambda path: shutil.copy(MODEL, path), SentencePieceTokenizer),
        ("vocab.txt", write_vocabulary, HuggingFaceTokenizer),
        (
            "tokenizer.json",
            lambda path: path.write_text(wordpiece.train(["a cat"], 30).to_json()),
            HuggingFaceTokenizer,
        ),
        ("tokenizer.json", lambda path: path.write_text(tokenizers.train(["a"], 514).to_json()), ClipTokenizer),
    ],
)
def test_a_folder_with_one_vocabulary_is_that_vocabulary(tmp_path, name, write, kind):
    write(tmp_path / name)
    assert type(tokenizers.load(tmp_path)) is type(tokenizers.load(tmp_path / name)) is kind


def test_of_several_vocabularies_one_has_to_be_named(tmp_path):
    shutil.copy(MODEL, tmp_path)
    write_vocabulary(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="contains several vocabularies; choose one"):
        tokenizers.load(tmp_path)
    assert tokenizers.load(tmp_path / "vocab.txt").vocab_size == len(BERT)


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
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
