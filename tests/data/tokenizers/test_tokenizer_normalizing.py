"""Text cleaning before a tokenizer.json's own steps, compared with copies of open_clip's functions."""

from __future__ import annotations

import html
import json
import pathlib
import re
import string
import unicodedata

import ftfy
import numpy as np
import pytest
from paths import MODELS
from tokenizer_reference import STRINGS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxclip.config import DataConfig
from jaxclip.data import tokenizers
from jaxclip.data.sources import open_source
from jaxclip.data.tokenizers import cleaning, normalizing, virtex
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.vocabulary import tokenizer_of
from jaxclip.errors import UserError
from jaxclip.inputs import Text

# Ordinary captions, in which only curly quotes are repaired.
CAPTIONS = [
    "A photo of a dog.",
    "Two  RED Circles,\tleft of 3 blue stars!",
    "my_summer_holiday, 2019/05/06 (day 1)",
    " The man's T-shirt; \u201cquoted\u201d, don\u2019t ",
    "100% cotton & wool \u2013 $5.99",
    "na\u00efve Stra\u00dfe\u00a0caf\u00e9",
    "...",
    "",
]
# Of these normalizers do less, or the library looks for special tokens.
OTHERS = [
    "Tom &amp;amp; Jerry &lt;br&gt;",
    "sch\u00c3\u00b6n",
    "</s> A <pad> </s>",
    "\uff21 \uff42",
    "\u03a3\u0391\u03a3 \u039f\u0394\u039f\u03a3",
    "\ud83d \udc00",
]


def words(text: str) -> str:
    return " ".join(text.split())


def mended(text: str) -> str:
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def bare(text: str) -> str:
    """canonicalize_text of open_clip and of big_vision."""
    return words(text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower())


def plain(text: str) -> str:
    """pre_caption of ALBEF, without its limit of thirty words."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    return words(text.replace("-", " ").replace("/", " ").replace("<person>", "person"))


EXPECTED = {
    "whitespace": lambda text: words(mended(text)),
    "lower": lambda text: words(mended(text)).lower(),
    "canonicalize": lambda text: bare(mended(text)),
    "siglip": bare,
    "albef": plain,
}


def letters() -> Tokenizer:
    """A vocabulary with an id for each letter, so that nothing that becomes of a text goes unseen."""
    found = sorted({*string.printable, *string.punctuation, "\u2581", *"".join(CAPTIONS)})
    pieces = ["<pad>", "</s>", "<unk>", *found]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    backend.normalizer = normalizers.Replace("7", "seven")
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_special_tokens(pieces[:3])
    return backend


def rows(backend: Tokenizer, texts: list[str], length: int) -> np.ndarray:
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    return np.array([encoding.ids for encoding in backend.encode_batch(texts)])


@pytest.mark.parametrize("clean", EXPECTED)
def test_ids_are_those_of_the_cleaned_text(clean):
    tokenizer = HuggingFaceTokenizer(letters().to_str(), clean=clean)
    texts = [text for text in [*CAPTIONS, *OTHERS, *STRINGS] if len(text) < 200]
    cleaned = [EXPECTED[clean](cleaning.encodable(text)) for text in texts]
    np.testing.assert_array_equal(tokenizer(texts, 200)[0], rows(letters(), cleaned, 200))


def test_the_files_own_steps_come_after():
    tokenizer = HuggingFaceTokenizer(letters().to_str(), clean="canonicalize")
    np.testing.assert_array_equal(tokenizer(["A_7."], 12)[0], rows(letters(), ["a 7"], 12))


@pytest.mark.parametrize("clean", EXPECTED)
def test_a_stored_tokenizer_cleans_as_it_did(clean):
    tokenizer = HuggingFaceTokenizer(letters().to_str(), clean=clean)
    again = tokenizers.from_json(tokenizer.to_json())
    assert again.clean == clean and again.to_json() == tokenizer.to_json()
    np.testing.assert_array_equal(again(CAPTIONS + OTHERS, 64)[0], tokenizer(CAPTIONS + OTHERS, 64)[0])


@pytest.mark.parametrize("clean", EXPECTED)
def test_other_programs_clean_texts_by_the_stored_file(clean):
    backend = Tokenizer.from_str(HuggingFaceTokenizer(letters().to_str(), clean=clean).to_json())
    texts = [text for text in CAPTIONS if clean != "siglip" or "\u201c" not in text]
    np.testing.assert_array_equal(rows(backend, texts, 64), rows(letters(), [EXPECTED[clean](t) for t in texts], 64))


@pytest.mark.parametrize("clean", ["siglip", "albef"])
def test_the_stored_steps_convert_every_single_letter_correctly(clean):
    way = normalizing.CLEANINGS[clean]
    normalizer = normalizing.join(clean, None)
    known = [chr(number) for number in range(1, 0x3000) if unicodedata.category(chr(number)) != "Cn"]
    for letter in known:
        assert normalizer.normalize_str(f"a{letter}b") == way.apply(f"a{letter}b"), hex(ord(letter))


@pytest.mark.parametrize("clean", [*EXPECTED, None])
def test_without_a_cleaning_or_with_the_files_own_the_ids_are_the_files(clean):
    plain = letters().to_str()
    stored = HuggingFaceTokenizer(plain, clean=clean).to_json()
    for again in (clean, "whitespace" if clean else None):
        assert HuggingFaceTokenizer(stored, clean=again).to_json() == stored
    if clean is None:
        assert json.loads(stored)["normalizer"] == json.loads(plain)["normalizer"]


def test_a_stronger_cleaning_precedes_the_files():
    weak = HuggingFaceTokenizer(letters().to_str(), clean="whitespace")
    strong = HuggingFaceTokenizer(weak.to_json(), clean="canonicalize")
    np.testing.assert_array_equal(
        strong(CAPTIONS, 64)[0], HuggingFaceTokenizer(letters().to_str(), clean="canonicalize")(CAPTIONS, 64)[0]
    )


# ------------------------------------------------------------------------------------------------- config.data.clean


def vocabulary_of(path: pathlib.Path) -> tokenizers.Tokenizer:
    config = DataConfig("shapes", vocabulary=str(path), clean="albef")
    tokenizer = tokenizer_of({"text": Text(16)}, config, open_source("shapes"))
    assert tokenizer is not None
    return tokenizer


def test_a_run_has_berts_vocabulary_with_its_own_cleaning(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *"smt'<>!/a", "man", "mans", "shirt", "person", "on", "off"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    texts = ["A man's T-shirt: <person> on/off!", "<PERSON>", "[MASK]"]
    expected = [["a", "mans", "t", "shirt", "person", "on", "off"], ["person"], ["[UNK]", "[UNK]", "[UNK]"]]
    stored = vocabulary_of(tmp_path).to_json()
    # As it is at first, and as the run and its checkpoints open it again.
    for tokenizer in (vocabulary_of(tmp_path), tokenizers.from_json(stored)):
        found = [[tokens[i] for i in row[: end + 1]] for row, end in zip(*tokenizer(texts, 16), strict=True)]
        assert found == [["[CLS]", *text, "[SEP]"] for text in expected]
        assert tokenizer.to_json() == stored
    # Without the cleaning they are others.
    assert not np.array_equal(tokenizers.load(tmp_path)(texts, 16)[0], tokenizers.from_json(stored)(texts, 16)[0])


OTHER_FORMS = {
    "CLIP's": lambda: ("tokenizer.json", tokenizers.train(["a"], 514).to_json().encode()),
    "SigLIP's": lambda: ("spiece.model", (MODELS / "siglip_form.model").read_bytes()),
    "SigLIP's, saved": lambda: ("tokenizer.json", tokenizers.load(MODELS / "siglip_form.model").to_json().encode()),
    "VirTex's": lambda: ("coco.model", virtex.train(CAPTIONS, 200).model),
    "VirTex's, saved": lambda: ("tokenizer.json", virtex.train(CAPTIONS, 200).to_json().encode()),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_of_vocabularies_refuse_it_in_one_line(tmp_path, form):
    name, content = OTHER_FORMS[form]()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match="is a vocabulary of CLIP's or SentencePiece's form.*; remove clean='albef'"
    ) as error:
        vocabulary_of(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
