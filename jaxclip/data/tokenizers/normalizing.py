"""Text cleanings as normalizers of a tokenizer.json, placed before the vocabulary's own.

Some vocabularies are used with texts that are cleaned outside their file: by open_clip according to its config
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

# The changes that ftfy makes to typical texts: it removes control and similar characters except white space, and makes
# curly quotes straight. Its other repairs, and html.unescape, cannot be expressed as normalizers.
REPAIRS = (
    normalizers.NFC(),
    normalizers.Replace(tokenizers.Regex(_CONTROL), ""),
    normalizers.Replace(tokenizers.Regex("[\u02bc\u2018-\u201b]"), "'"),
    normalizers.Replace(tokenizers.Regex("[\u201c-\u201f]"), '"'),
)
# Replaces white space, as defined by Python's str.split, by single spaces.
_WORDS = (
    normalizers.Replace(tokenizers.Regex(_SPACE), " "),
    normalizers.Strip(),
)
_PLAIN_WORDS = (
    normalizers.Lowercase(),
    normalizers.Replace(tokenizers.Regex("[,.'!?\"()*#:;~]"), ""),
    normalizers.Replace(tokenizers.Regex("[-/]"), " "),
    normalizers.Replace("<person>", "person"),
    *_WORDS,
)
_CANONICAL = (
    normalizers.Replace("_", " "),
    normalizers.Replace(tokenizers.Regex(_PUNCTUATION), ""),
    normalizers.Lowercase(),
    *_WORDS,
)


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """A way to clean texts.

    Attributes:
      apply: the complete cleaning.
      steps: the normalizers that represent it in a file, and do as much of it as normalizers can.
      punctuation: whether a cleaned text may contain punctuation, and so a special token.
    """

    apply: Callable[[str], str]
    steps: tuple[normalizers.Normalizer, ...]
    punctuation: bool


# By open_clip's names; "siglip" is SigLIP's own (`cleaning.canonical`), which repairs nothing, nor does "albef".
CLEANINGS = {
    "canonicalize": Cleaning(lambda text: cleaning.canonical(cleaning.repaired(text)), (*REPAIRS, *_CANONICAL), False),
    "lower": Cleaning(
        lambda text: " ".join(cleaning.repaired_pieces(text)), (*REPAIRS, *_WORDS, normalizers.Lowercase()), True
    ),
    "whitespace": Cleaning(lambda text: " ".join(cleaning.repaired(text).split()), (*REPAIRS, *_WORDS), True),
    "siglip": Cleaning(cleaning.canonical, _CANONICAL, False),
    "albef": Cleaning(cleaning.plain_words, _PLAIN_WORDS, True),
}


def split(normalizer: normalizers.Normalizer | None) -> tuple[str | None, normalizers.Normalizer | None]:
    """The name of the cleaning in `CLEANINGS` that a file's normalizer starts with, if any, and the other steps."""
    parts = _parts(normalizer)
    # The longest first, because "lower" starts with the steps of "whitespace".
    for name, way in sorted(CLEANINGS.items(), key=lambda item: -len(item[1].steps)):
        steps = [part for step in way.steps for part in _parts(step)]
        if parts[: len(steps)] == steps:
            return name, _joined(parts[len(steps) :])
    return None, normalizer


def join(name: str, normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer | None:
    """A file's normalizer, preceded by one of `CLEANINGS`; the inverse of `split`."""
    return _joined([part for step in CLEANINGS[name].steps for part in _parts(step)] + _parts(normalizer))


def lowered(content: dict[str, Any]) -> dict[str, Any]:
    """A parsed tokenizer.json with an initial lower-casing step, as added by transformers' Siglip2Tokenizer."""
    own = content.get("normalizer")
    parts = own["normalizers"] if own and own["type"] == "Sequence" else [own] if own else []
    lower = {"type": "Lowercase"}
    return (
        content
        if parts[:1] == [lower]
        else content | {"normalizer": {"type": "Sequence", "normalizers": [lower, *parts]}}
    )


def _parts(normalizer: normalizers.Normalizer | None) -> list[dict[str, Any]]:
    """A normalizer's steps as in a tokenizer.json."""
    if normalizer is None:
        return []
    content = json.loads(normalizer.__getstate__())
    return content["normalizers"] if content["type"] == "Sequence" else [content]


def _joined(parts: list[dict[str, Any]]) -> normalizers.Normalizer | None:
    if not parts:
        return None
    normalizer = normalizers.Sequence([])
    # The library offers no other way to build a normalizer from JSON.
    normalizer.__setstate__(json.dumps({"type": "Sequence", "normalizers": parts}).encode())
    return normalizer
