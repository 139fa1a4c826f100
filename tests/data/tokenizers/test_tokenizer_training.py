"""Training of vocabularies from captions, and its command."""

from __future__ import annotations

import json
import pathlib
import random
import subprocess
import sys

import pytest
from paths import ROOT
from tokenizer_reference import ALPHABET, END, START, STRINGS, Reference, row

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import __main__ as command
from jaxclip.data.tokenizers import wordpiece
from jaxclip.errors import UserError


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
def test_almost_empty_captions_give_only_the_bytes(texts):
    assert tokenizers.train(texts, 1000).vocab_size == 514


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    assert tokenizers.train(captions(), 514).vocab_size == 514
    with pytest.raises(UserError, match=r"at least 514, not 513"):
        tokenizers.train(captions(), 513)


def test_a_trained_wordpiece_vocabulary_has_berts_special_tokens():
    tokenizer = wordpiece.train(captions(), 150)
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert sorted(vocabulary, key=vocabulary.get)[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id) == (0, 2, 3, 4)
    assert tokenizer.vocab_size == len(vocabulary) == 150
    for caption in captions()[:20]:
        tokens, _ = tokenizer([caption], 77)
        assert 1 not in tokens[0] and tokenizer.decode(tokens[0]).replace(" ", "") == spelled(caption)


def spelled(caption: str) -> str:
    """What BERT's normalization leaves of one: no accents, and no spaces here."""
    return caption.replace(" ", "").replace("\u00e9", "e")


def test_wordpiece_training_does_not_depend_on_chance_or_order():
    text = wordpiece.train(captions(), 150).to_json()
    assert wordpiece.train(captions(), 150).to_json() == text
    assert wordpiece.train(iter(captions()[::-1]), 150).to_json() == text


def test_a_wordpiece_vocabulary_smaller_than_its_letters_is_refused():
    # a to e, a full stop and one ideograph, first in a word or not, and five special tokens.
    with pytest.raises(UserError, match="at least 19 tokens, not 18"):
        wordpiece.train(captions(), 18)
    assert wordpiece.train(captions(), 19).vocab_size == 19


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("table")
    lines = ["filepath\ttitle", *(f"{i}.png\ta photo of number {i}" for i in range(99)), "99.png\t" + "long " * 90]
    (folder / "captions.tsv").write_text("\n".join(lines))
    for i in range(100):
        (folder / f"{i}.png").write_bytes(b"")
    return folder / "captions.tsv"


@pytest.mark.parametrize("kind", ["clip", "sentencepiece", "wordpiece"])
def test_the_command_writes_what_load_reads_and_says_how_long_captions_are(table, tmp_path, capsys, kind):
    out = tmp_path / "tokenizer.json"
    assert command.main([str(table), f"--kind={kind}", "--size=560", f"--out={out}"]) == 0
    tokenizer = tokenizers.load(out)
    printed = capsys.readouterr().out
    assert f"a vocabulary of {tokenizer.vocab_size}" in printed
    assert "captions of more than 77 tokens: 1 of 100" in printed
    lengths = [len(row(tokenizer, f"a photo of number {i}", 200)) for i in range(99)]
    mean = (sum(lengths) + len(row(tokenizer, "long " * 90, 200))) / 100
    assert f"tokens per caption: {mean:.1f} on average" in printed


def test_the_command_reads_no_more_records_than_it_is_told_to(table, tmp_path, capsys):
    assert command.main([str(table), "--size=560", "--limit=10", f"--out={tmp_path / 'few.json'}"]) == 0
    assert "of 10\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "is not a data source"),
        (["shapes", "--size=3"], "at least 514, not 3"),
        (["shapes", "--limit=0"], "--limit=0"),
        (["shapes", "--out=nowhere/tokenizer.json"], "does not exist; create it"),
    ],
)
def test_what_the_command_cannot_do_is_one_line_and_status_2(tmp_path, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "jaxclip.data.tokenizers", "--limit=9", f"--out={tmp_path / 'out.json'}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    last = done.stderr.strip().split("\n")[-1].split("\r")[-1]
    assert done.returncode == 2 and last.startswith("error: ") and said in last, done.stderr
    assert not done.stdout and not (tmp_path / "out.json").exists()
