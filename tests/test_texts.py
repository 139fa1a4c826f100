"""Captions on their way to the tokenizer: the choice among them, templates, and mirrored pictures."""

from __future__ import annotations

import numpy as np
import pytest

from jaxclip.data.texts import choose, swap_sides


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("left of the bright right door", "right of the bright left door"),
        ("a red disc to the left of a blue ring", "a red disc to the right of a blue ring"),
        ("Left, LEFT and left", "Right, RIGHT and right"),
        ("(right)-left/right", "(left)-right/left"),
        ("leftovers, outright copyright, a righteous lefty", "leftovers, outright copyright, a righteous lefty"),
        ("a photo of a dog", "a photo of a dog"),
        ("", ""),
    ],
)
def test_left_and_right_change_places_as_whole_words(caption, mirrored):
    assert swap_sides(caption) == mirrored
    assert swap_sides(mirrored) == caption


def test_every_caption_of_a_record_is_chosen_about_equally_often():
    rng = np.random.default_rng(0)
    chosen = [choose(("a", "b", "c"), (), rng) for _ in range(3000)]
    assert all(900 < chosen.count(caption) < 1100 for caption in "abc")


def test_a_caption_is_wrapped_in_each_template_about_equally_often():
    rng = np.random.default_rng(0)
    templates = ("a photo of a {c}.", "{c}", "{c} and {c}")
    chosen = [choose(("dog",), templates, rng) for _ in range(3000)]
    assert all(900 < chosen.count(text) < 1100 for text in ("a photo of a dog.", "dog", "dog and dog"))


def test_the_same_randomness_chooses_the_same():
    captions, templates = [str(i) for i in range(50)], ["{c}", "x {c}"]
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    assert [choose(captions, templates, one) for _ in range(20)] == [
        choose(captions, templates, other) for _ in range(20)
    ]


@pytest.mark.parametrize("caption", ["{c}", "100% {0} {x!r}", r"\1 \g<0>"])
def test_what_looks_like_formatting_in_a_caption_stays_as_it_is(caption):
    assert choose((caption,), ("a {c}!",), np.random.default_rng(0)) == f"a {caption}!"
