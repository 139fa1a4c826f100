"""How a tokenizer.json says what becomes of a text first: by normalisers that stand before the vocabulary's own.

A vocabulary may be used on texts that are cleaned outside of its file: by open_clip, as its config says
("tokenizer_kwargs": {"clean": ...}; open_clip/tokenizer.py, get_clean_fn), or by transformers' SiglipTokenizer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import normalizers

from jaxclip.data.tokenizers import cleaning

_CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"
_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
_PUNCTUATION = r"[!-/:-@\[-`{-~]"

# What ftfy does to texts as they mostly are: it removes control characters and their like, white space not among them,
# and makes curly quotes straight. The rest of its mending, and html.unescape, no normaliser can do.
MENDING = (
    normalizers.NFC(),
    normalizers.Replace(tokenizers.Regex(_CONTROL), ""),
    normalizers.Replace(tokenizers.Regex("[\u02bc\u2018-\u201b]"), "'"),
    normalizers.Replace(tokenizers.Regex("[\u201c-\u201f]"), '"'),
)
# White space as Python's str.split has it, made single spaces between words.
_WORDS = (
    normalizers.Replace(tokenizers.Regex(_SPACE), " "),
    normalizers.Strip(),
)
_CANONICAL = (
    normalizers.Replace("_", " "),
    normalizers.Replace(tokenizers.Regex(_PUNCTUATION), ""),
    normalizers.Lowercase(),
    *_WORDS,
)


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """One way to clean texts.

    Attributes:
      apply: all of it.
      said: the normalisers that stand for it in a file, and do as much of it as normalisers can.
      punctuation: whether a cleaned text may have some, and so may spell a special token.
    """

    apply: Callable[[str], str]
    said: tuple[normalizers.Normalizer, ...]
    punctuation: bool


# By open_clip's names; "siglip" is SigLIP's own (`cleaning.canonical`), which mends nothing.
CLEANINGS = {
    "canonicalize": Cleaning(lambda text: cleaning.canonical(cleaning.mended(text)), (*MENDING, *_CANONICAL), False),
    "lower": Cleaning(
        lambda text: " ".join(cleaning.mended_pieces(text)), (*MENDING, *_WORDS, normalizers.Lowercase()), True
    ),
    "whitespace": Cleaning(lambda text: " ".join(cleaning.mended(text).split()), (*MENDING, *_WORDS), True),
    "siglip": Cleaning(cleaning.canonical, _CANONICAL, False),
}


def split(normalizer: normalizers.Normalizer | None) -> tuple[str | None, normalizers.Normalizer | None]:
    """Which of `CLEANINGS` a file's normaliser begins with, if any, and the normaliser without it."""
    parts = _parts(normalizer)
    # The longest first: "lower" begins as "whitespace" does.
    for name, way in sorted(CLEANINGS.items(), key=lambda item: -len(item[1].said)):
        said = [part for one in way.said for part in _parts(one)]
        if parts[: len(said)] == said:
            return name, _joined(parts[len(said) :])
    return None, normalizer


def join(name: str, normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer | None:
    """A file's normaliser with one of `CLEANINGS` before it; the inverse of `split`."""
    return _joined([part for one in CLEANINGS[name].said for part in _parts(one)] + _parts(normalizer))


def lowered(content: dict[str, Any]) -> dict[str, Any]:
    """A parsed tokenizer.json whose texts are made lower case first, as transformers' Siglip2Tokenizer does it."""
    own = content.get("normalizer")
    parts = own["normalizers"] if own and own["type"] == "Sequence" else [own] if own else []
    lower = {"type": "Lowercase"}
    return (
        content
        if parts[:1] == [lower]
        else content | {"normalizer": {"type": "Sequence", "normalizers": [lower, *parts]}}
    )


def _parts(normalizer: normalizers.Normalizer | None) -> list[dict[str, Any]]:
    """A normaliser's steps as a tokenizer.json has them."""
    if normalizer is None:
        return []
    content = json.loads(normalizer.__getstate__())
    return content["normalizers"] if content["type"] == "Sequence" else [content]


def _joined(parts: list[dict[str, Any]]) -> normalizers.Normalizer | None:
    if not parts:
        return None
    normalizer = normalizers.Sequence([])
    # The library's way from JSON, as __getstate__ is its way to it.
    normalizer.__setstate__(json.dumps({"type": "Sequence", "normalizers": parts}).encode())
    return normalizer
