"""Captions on their way to the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def choose(captions: Sequence[str], templates: Sequence[str], rng: np.random.Generator) -> str:
    """One of a record's captions at random, wrapped in one of the templates at random where there are any."""
    caption = captions[int(rng.integers(len(captions)))]
    return wrap(caption, templates[int(rng.integers(len(templates)))]) if templates else caption


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
