"""Selection of captions and questions, sentence splitting and text augmentation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from jaxclip.data.order import hash_ints

T = TypeVar("T")

Choice = Literal["random", "first", "all", "sentence"]

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)

# Candidate ends of a sentence: a period or similar mark followed by white space (so never within "1.5"), an East Asian
# mark, or the end of a line. The possessive `++` and `*+` do not backtrack, so a megabyte of dots is read once.
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s|\Z)|[。！？｡]++["'”’」』）]*+|\n\s*+""")

# A period after one of these belongs to the word, as it does after a single letter ("J. Smith") and in "a.m.".
_ABBREVIATION = re.compile(
    r"\b(?:dr|mr|mrs|ms|prof|st|mt|vs|cf|ca|approx|fig|eq|[a-z]|(?:[a-z]\.)+[a-z])\.\Z", re.IGNORECASE
)
_LONGEST_ABBREVIATION = 16

_LONGEST_REPORT = 1 << 16  # characters of a text that are split into sentences


def choose(
    captions: Sequence[str],
    templates: Sequence[str],
    rng: np.random.Generator,
    choice: Choice,
    epoch: int,
    record: int,
) -> str:
    """One of a record's captions, wrapped in a random template if there are any.

    Args:
      captions: at least one.
      templates: phrases with a placeholder `{c}`.
      rng: the only source of randomness.
      choice: "random", "first", "all" (each caption in turn, one per epoch) or "sentence" (one sentence of a random
        caption, as in ConVIRT; Zhang et al. 2020, section 3).
      epoch, record: determine the turn for "all".
    """
    caption = one_of(captions, rng, choice, epoch, record)
    if choice == "sentence":
        caption = sentence(caption, rng)
    return wrap(caption, templates[int(rng.integers(len(templates)))]) if templates else caption


def one_of(texts: Sequence[T], rng: np.random.Generator, choice: Choice, epoch: int, record: int) -> T:
    """One of a record's captions or questions: the first, each in turn, or else a random one; arguments of `choose`."""
    match choice:
        case "first":
            return texts[0]
        case "all":
            return in_turn(texts, epoch, record)
        case _:
            return texts[int(rng.integers(len(texts)))]


def in_turn(texts: Sequence[T], epoch: int, record: int) -> T:
    """The caption or question of an epoch: each of n is used once in any n consecutive epochs.

    Records start at different ones, so that an epoch does not consist of all first captions.
    """
    return texts[(epoch + int(hash_ints(record))) % len(texts)]


def sentence(text: str, rng: np.random.Generator) -> str:
    """A uniformly random sentence of a text."""
    choices = sentences(text[:_LONGEST_REPORT])
    return choices[int(rng.integers(len(choices)))]


def sentences(text: str) -> list[str]:
    """Splits a text into at least one sentence, in linear time.

    A sentence ends at ".", "!", "?" or "…" before white space, at their East Asian forms anywhere, at an empty line,
    and at the end of a line. It does not end at a line break if the next line continues in lower case, as in a report
    wrapped at 80 columns, nor after abbreviations ("Dr.", "e.g.") and initials. A piece without letters, such as the
    number of a list item, is joined to the next sentence, or to the last one.
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
    """Drops each word with probability p, but never all of them.

    This is the random deletion of EDA (Wei and Zou 2019, section 2), which suggests a p of about 0.1. DeCLIP (Li et al.
    2022) augments captions with EDA. Words are separated by white space, so a Chinese text does not change.
    """
    words = caption.split()
    mask = rng.random(len(words)) >= p
    if not words or mask.all():
        return caption
    if not mask.any():
        mask[rng.integers(len(words))] = True
    return " ".join(word for word, is_kept in zip(words, mask, strict=True) if is_kept)


def wrap(caption: str, template: str) -> str:
    """Inserts a caption or class name into a template."""
    return template.replace("{c}", caption)


def swap_sides(caption: str) -> str:
    """The caption of the mirrored image: swaps the words "left" and "right"."""

    def swap(match: re.Match) -> str:
        word = match.group()
        other = "right" if word.lower() == "left" else "left"
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDES.sub(swap, caption)
