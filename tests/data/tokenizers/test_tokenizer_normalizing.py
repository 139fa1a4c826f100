"""Text cleaning before a tokenizer.json's own steps, compared with copies of open_clip's functions."""

from __future__ import annotations

import html
import json
import string
import unicodedata

import ftfy
import numpy as np
import pytest
from tokenizer_reference import STRINGS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import cleaning, normalizing
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer

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


EXPECTED = {
    "whitespace": lambda text: words(mended(text)),
    "lower": lambda text: words(mended(text)).lower(),
    "canonicalize": lambda text: bare(mended(text)),
    "siglip": bare,
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


def test_the_stored_steps_convert_every_single_letter_correctly():
    way = normalizing.CLEANINGS["siglip"]
    normalizer = normalizing.join("siglip", None)
    known = [chr(number) for number in range(1, 0x3000) if unicodedata.category(chr(number)) != "Cn"]
    for letter in known:
        assert normalizer.normalize_str(f"a{letter}b") == way.apply(f"a{letter}b"), hex(ord(letter))


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize", "siglip", None])
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
