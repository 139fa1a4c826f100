"""Captions on their way to the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxclip.data.order import hash_ints

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)

# Where a sentence may end: after a full stop or the like with white space behind it, so never within "1.5"; after an
# East Asian one; at a line's end. `++` and `*+` give nothing back, so that a megabyte of dots is read once.
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s|\Z)|[。！？｡]++["'”’」』）]*+|\n\s*+""")

# A full stop behind one of these belongs to the word, as it does behind one letter ("J. Smith") and in "a.m.".
_ABBREVIATION = re.compile(
    r"\b(?:dr|mr|mrs|ms|prof|st|mt|vs|cf|ca|approx|fig|eq|[a-z]|(?:[a-z]\.)+[a-z])\.\Z", re.IGNORECASE
)
_LONGEST_ABBREVIATION = 16

_LONGEST_REPORT = 1 << 16  # characters that sentences are looked for in


def choose(
    captions: Sequence[str],
    templates: Sequence[str],
    rng: np.random.Generator,
    choice: Literal["random", "first", "all", "sentence"],
    epoch: int,
    record: int,
) -> str:
    """One of a record's captions, wrapped in one of the templates at random where there are any.

    Args:
      captions: at least one.
      templates: phrases with a `{c}`.
      rng: the only source of randomness.
      choice: "random" for any of them; "first" for the first; "all" for each in its turn, one an epoch; "sentence" for
        one sentence of any of them, as ConVIRT takes one of a report (Zhang et al. 2020, section 3).
      epoch, record: what turn it is, for "all".
    """
    match choice:
        case "first":
            caption = captions[0]
        case "all":
            caption = in_turn(captions, epoch, record)
        case _:
            caption = captions[int(rng.integers(len(captions)))]
            if choice == "sentence":
                caption = sentence(caption, rng)
    return wrap(caption, templates[int(rng.integers(len(templates)))]) if templates else caption


def in_turn(captions: Sequence[str], epoch: int, record: int) -> str:
    """The caption whose turn it is: each of n captions comes once in any n epochs on end.

    Records begin at different places, so that an epoch is not one of everybody's first captions.
    """
    return captions[(epoch + int(hash_ints(record))) % len(captions)]


def sentence(text: str, rng: np.random.Generator) -> str:
    """One of a text's sentences, each as likely as any other."""
    found = sentences(text[:_LONGEST_REPORT])
    return found[int(rng.integers(len(found)))]


def sentences(text: str) -> list[str]:
    """The sentences of a text, at least one, in time linear in its length.

    They end at ".", "!", "?" and "…" before white space, at their East Asian forms anywhere, at an empty line, and at
    an end of line unless the next line goes on in lower case, as in a report that is broken at 80 columns. In doubt the
    text stays together: after "Dr.", "e.g." and the like, and after initials. A piece without a letter, such as the
    number of a point in a list, belongs to the next sentence, or to the last.
    """
    ends: list[int] = []
    seen, has_letter = 0, False
    for end in _END.finditer(text):
        has_letter = has_letter or _has_letter(text[seen : end.start()])
        seen = end.end()
        if has_letter and _is_end(text, end):
            ends.append(seen)
            has_letter = False
    if ends and not has_letter and not _has_letter(text[seen:]):
        ends[-1] = len(text)
    else:
        ends.append(len(text))
    return [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _is_end(text: str, end: re.Match) -> bool:
    mark = end.group()
    if mark.isspace():
        return mark.count("\n") > 1 or not text[end.end() : end.end() + 1].islower()
    if mark.count(".") != 1:
        return True
    stop = end.start() + 1
    return not _ABBREVIATION.search(text, max(0, stop - _LONGEST_ABBREVIATION), stop)


def drop_words(caption: str, p: float, rng: np.random.Generator) -> str:
    """Each word left out with probability p, one of them staying in any case.

    The random deletion of EDA (Wei and Zou 2019, section 2), which suggests a p of about 0.1; DeCLIP (Li et al. 2022)
    augments captions with EDA. Words are what white space separates: a text in Chinese stays whole.
    """
    words = caption.split()
    stays = rng.random(len(words)) >= p
    if not words or stays.all():
        return caption
    if not stays.any():
        stays[rng.integers(len(words))] = True
    return " ".join(word for word, stay in zip(words, stays, strict=True) if stay)


def wrap(caption: str, template: str) -> str:
    """A caption, such as a class name, put into the place that a template leaves for it."""
    return template.replace("{c}", caption)


def swap_sides(caption: str) -> str:
    """What a caption becomes when its picture is mirrored: "left" and "right" change places, as whole words."""

    def swap(match: re.Match) -> str:
        word = match.group()
        other = "right" if word.lower() == "left" else "left"
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDES.sub(swap, caption)
