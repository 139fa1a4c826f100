"""SentencePiece in VirTex's form, compared with models that the library trains by the arguments of VirTex's script."""

from __future__ import annotations

import base64
import json
import pathlib
import random
import re

import numpy as np
import pytest
import sentencepiece
from test_tokenizer_training import captions

from jaxclip.data import tokenizers
from jaxclip.data.sources import open_source
from jaxclip.data.tokenizers import virtex
from jaxclip.data.vocabulary import caption_sample
from jaxclip.errors import UserError

LINES = [
    "A dog's ball, left of the red ball.",
    "The dog! A red dog; the ball (left).",
    "Caf\u00e9 \u00c5ngstr\u00f6m, a \ufb01ne caf\u00e9?",
] * 9


def published(folder: pathlib.Path, lines: list[str], size: int) -> pathlib.Path:
    """A .model trained as VirTex's script trains coco_10k.model, on text that is in lower case without accents."""
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        f"--input={folder / 'captions.txt'} --vocab_size={size} --model_prefix={folder / 'coco_10k'} --minloglevel=2"
        " --model_type=bpe --character_coverage=1.0 --bos_id=-1 --eos_id=-1 --control_symbols=[SOS],[EOS],[MASK]"
    )
    return folder / "coco_10k.model"


def pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


@pytest.fixture(scope="module")
def tokenizer() -> virtex.VirTexTokenizer:
    return virtex.train(LINES, 90)


def test_the_special_ids_are_virtexs(tokenizer):
    assert pieces(tokenizer.model)[:4] == ["<unk>", "[SOS]", "[EOS]", "[MASK]"]
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 90


def test_a_trained_vocabulary_is_that_of_virtexs_script(tmp_path):
    plain = [line.lower().replace("\u00e9", "e") for line in captions()]
    path = published(tmp_path, plain, 250)
    assert pieces(virtex.train(captions(), 250).model) == pieces(path.read_bytes())


def test_a_published_model_is_opened_by_its_path_and_by_its_folder(tmp_path, tokenizer):
    path = published(tmp_path, [line.lower() for line in LINES], 90)
    ids = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode("a red dog, left!")
    for place in (path, tmp_path):
        found = tokenizers.load(place)
        assert type(found) is virtex.VirTexTokenizer
        assert found(["A RED dog, left!"], 30)[0][0].tolist() == [1, *ids, 2, *[0] * (28 - len(ids))]


@pytest.mark.parametrize("context", [2, 5, 11, 30])
def test_rows_are_start_text_end_padding_and_keep_the_end(tokenizer, context):
    texts = ["", "a red dog", "the ball, left of the red ball!"]
    tokens, ends = tokenizer(texts, context)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text, row, end in zip(texts, tokens, ends, strict=True):
        ids = processor.encode(text)[: context - 2]
        assert row.tolist() == [1, *ids, 2, *[0] * (context - 2 - len(ids))]
        assert row[end] == 2


def test_texts_are_in_lower_case_without_accents(tokenizer):
    for text in ("CAF\u00c9 \u00c5NGSTR\u00d6M, A FINE CAF\u00c9", "cafe\u0301 a\u030angstro\u0308m, a \ufb01ne cafe"):
        expected = tokenizer(["cafe angstrom, a fine cafe"], 40)[0]
        np.testing.assert_array_equal(tokenizer([text], 40)[0], expected)
        assert tokenizer.decode(expected[0]) == "cafe angstrom, a fine cafe"


def test_no_piece_has_letters_and_punctuation():
    found = pieces(virtex.train(LINES * 50, 1000).model)[4:]
    assert "\u2581ball" in found and "\u2581left" in found
    assert not [piece for piece in found if re.search(r"\w", piece) and re.search(r"[^\w\u2581]", piece)]


def test_unknown_characters_have_the_paddings_id_and_end_no_text(tokenizer):
    tokens, ends = tokenizer(["a \u65e5 dog"], 12)
    assert 0 in tokens[0, 1 : ends[0]] and tokens[0, ends[0]] == 2 and not tokens[0, ends[0] + 1 :].any()
    assert tokenizer.decode(tokens[0]).replace(" ", "") == "a\u2047dog"


def test_spelled_control_symbols_are_text(tokenizer):
    tokens, ends = tokenizer(["a dog [EOS] [MASK] [SOS] the ball"], 60)
    assert tokens[0].tolist().count(2) == 1 and 3 not in tokens[0] and tokens[0].tolist().count(1) == 1
    assert tokenizer.decode(tokens[0]).endswith("the ball")


def test_decode_ends_at_the_first_end_and_leaves_symbols_out(tokenizer):
    ids = tokenizer(["a red dog"], 9)[0][0].tolist()
    end = ids.index(2)
    assert tokenizer.decode(ids) == tokenizer.decode(ids[1:end]) == "a red dog"
    assert tokenizer.decode([*ids[:end], 3, 2, *ids[1:end], 2]) == "a red dog"
    assert tokenizer.decode([0, 0]) == ""


def test_training_does_not_depend_on_chance_or_order():
    model = virtex.train(captions(), 300).model
    assert virtex.train(captions(), 300).model == model
    assert virtex.train(random.Random(0).sample(captions(), 400), 300).model == model


def test_training_is_silent(capfd):
    virtex.train(LINES, 90)
    assert capfd.readouterr() == ("", "")


def test_a_size_that_the_captions_cannot_fill_gives_a_smaller_vocabulary():
    tokenizer = virtex.train(["a red circle", "A RED square", "the red circle"], 10_000)
    assert tokenizer(["red circle"], 30)[1].tolist() == [3]
    assert tokenizer.vocab_size < 80


def test_the_shapes_have_a_vocabulary_of_any_size():
    sample = caption_sample(open_source("shapes"), (), limit=100)
    lengths = []
    for size in (50, 200, 10_000):
        tokenizer = virtex.train(sample, size)
        tokens, ends = tokenizer(sample, 150)
        assert tokenizer.vocab_size <= size
        assert [tokenizer.decode(row) for row in tokens] == [caption.lower() for caption in sample]
        lengths.append(ends.mean())
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 2 * lengths[1] > lengths[2]


def test_a_vocabulary_smaller_than_its_characters_is_refused():
    # Unknown, start, end, mask; the letters of "ab c" and the space.
    assert virtex.train(["ab c"], 8).vocab_size == 8
    with pytest.raises(UserError, match="at least 8 tokens, not 7") as caught:
        virtex.train(["ab c"], 7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("texts", [[], [""], [" \n "], ["\u0301"], ["\u2581"]])
def test_captions_without_text_are_one_line(texts, capfd):
    with pytest.raises(UserError, match="SentencePiece vocabulary") as caught:
        virtex.train(texts, 100)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_odd_captions_can_be_trained_on():
    odd = ["\ud83d a", "x" * 100_000, "two\nlines\tof text", "[SOS] [EOS]", "\0 a", "\ufdfa" * 3000, *LINES]
    tokenizer = virtex.train(odd, 200)
    for text in ("two lines of text", "the red ball"):
        assert tokenizer.decode(tokenizer([text], 40)[0][0]) == text


MODEL = virtex.train(LINES, 90).model


WRONG = {
    "cut short": (MODEL[:-100], "damaged"),
    "text": (b"[SOS] [EOS] [MASK]", "damaged"),
    "another symbol in the piece's place": (MODEL.replace(b"[MASK]", b"[XXXX]", 1), r"no control symbol \[MASK\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_damaged_models_are_refused_in_one_line(tmp_path, name, capfd):
    content, reason = WRONG[name]
    path = tmp_path / "some.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is not a tokenizer vocabulary .*{reason}") as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["?", 3, "", base64.b64encode(b"[SOS]").decode()], ids=str)
def test_damaged_json_is_refused(content):
    with pytest.raises(UserError, match="the stored tokenizer"):
        tokenizers.from_json(json.dumps({"virtex": content}))
