"""Caption selection, sentences, templates and mirrored captions."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from jaxclip.data.captions import choose, drop_words, in_turn, sentence, sentences, swap_sides


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("left of the bright right door", "right of the bright left door"),
        ("a red disc to the left of a blue ring", "a red disc to the right of a blue ring"),
        ("Left, LEFT and left", "Right, RIGHT and right"),
        ("(right)-left/right", "(left)-right/left"),
        ("a left-hand drive, right-angled", "a right-hand drive, left-angled"),
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
    chosen = [choose(("a", "b", "c"), (), rng, "random", 0, 0) for _ in range(3000)]
    assert all(900 < chosen.count(caption) < 1100 for caption in "abc")


def test_a_caption_is_wrapped_in_each_template_about_equally_often():
    rng = np.random.default_rng(0)
    templates = ("a photo of a {c}.", "{c}", "{c} and {c}")
    chosen = [choose(("dog",), templates, rng, "random", 0, 0) for _ in range(3000)]
    assert all(900 < chosen.count(text) < 1100 for text in ("a photo of a dog.", "dog", "dog and dog"))


def test_the_same_randomness_chooses_the_same():
    captions, templates = [str(i) for i in range(50)], ["{c}", "x {c}"]
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    assert [choose(captions, templates, one, "random", 0, 0) for _ in range(20)] == [
        choose(captions, templates, other, "random", 0, 0) for _ in range(20)
    ]


@pytest.mark.parametrize("caption", ["{c}", "100% {0} {x!r}", r"\1 \g<0>"])
def test_formatting_characters_in_a_caption_do_not_change(caption):
    assert choose((caption,), ("a {c}!",), np.random.default_rng(0), "random", 0, 0) == f"a {caption}!"


def test_the_first_caption_is_the_first_whatever_the_randomness():
    assert {choose("abc", (), np.random.default_rng(seed), "first", 0, 0) for seed in range(20)} == {"a"}


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("record", [0, 1, 123_456_789_012])
def test_in_turn_each_caption_comes_once_in_any_n_epochs_on_end(count, record):
    captions = [str(number) for number in range(count)]
    rng = np.random.default_rng(0)
    for start in range(2 * count):
        epochs = range(start, start + count)
        seen = [choose(captions, (), rng, "all", epoch=epoch, record=record) for epoch in epochs]
        assert sorted(seen) == captions


def test_in_one_epoch_records_are_at_different_turns():
    turns = collections.Counter(in_turn("abcde", 3, record) for record in range(5000))
    # Each is a binomial count of mean 1000 and deviation 28.
    assert set(turns) == set("abcde") and all(abs(count - 1000) < 140 for count in turns.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog. A cat! Why?", ["A dog.", "A cat!", "Why?"]),
        ("a dog on grass", ["a dog on grass"]),
        ("a dog on grass .", ["a dog on grass ."]),
        ("no effusion. heart size normal.", ["no effusion.", "heart size normal."]),
        ("A nodule of 1.5 cm, at 10.30 a.m. today.", ["A nodule of 1.5 cm, at 10.30 a.m. today."]),
        ("Seen by Dr. Smith. Stable.", ["Seen by Dr. Smith.", "Stable."]),
        ("Big cats, e.g. lions. Not dogs.", ["Big cats, e.g. lions.", "Not dogs."]),
        ("A few, e.g. 12. Then more.", ["A few, e.g. 12.", "Then more."]),
        ("J. R. Smith (U.S.) wrote it. We read it.", ["J. R. Smith (U.S.) wrote it.", "We read it."]),
        ("He said “go.” Then he left.", ["He said “go.”", "Then he left."]),
        ("Really?! Yes... No!", ["Really?!", "Yes...", "No!"]),
        ("1. No fracture. 2. Heart normal. 3.", ["1. No fracture.", "2. Heart normal. 3."]),
        ("IMPRESSION:\nNo change\n\nin size", ["IMPRESSION:", "No change", "in size"]),
        ("The heart is\r\nnormal in size.", ["The heart is\r\nnormal in size."]),
        ("一只狗。一只猫！「什么？」他说", ["一只狗。", "一只猫！", "「什么？」", "他说"]),
        ("  spaces around.  And between. ", ["spaces around.", "And between."]),
        ("...", ["..."]),
        ("42. 43.", ["42. 43."]),
        ("", [""]),
    ],
)
def test_a_text_is_split_into_its_sentences(text, expected):
    assert sentences(text) == expected


def test_every_sentence_of_a_text_is_chosen_about_equally_often():
    rng = np.random.default_rng(0)
    chosen = collections.Counter(sentence("One. Two! Three?", rng) for _ in range(3000))
    assert set(chosen) == {"One.", "Two!", "Three?"} and all(900 < count < 1100 for count in chosen.values())


def test_a_sentence_is_chosen_of_any_caption():
    rng = np.random.default_rng(0)
    chosen = {choose(("One. Two.", "Three"), ("<{c}>",), rng, "sentence", 0, 0) for _ in range(100)}
    assert chosen == {"<One.>", "<Two.>", "<Three>"}


@pytest.mark.parametrize("piece", [".", "1. ", "a. ", "\n ", "x", '."', "。", "ab. \n", ".x"])
def test_repetitions_in_a_text_are_not_lost(piece):
    text = piece * 20_000
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_each_word_is_dropped_with_the_probability_given():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(10)]
    kept = collections.Counter(word for _ in range(4000) for word in drop_words(" ".join(words), 0.3, rng).split())
    # Each is a binomial count of mean 2800 and deviation 29.
    assert all(abs(kept[word] - 2800) < 145 for word in words)


def test_words_that_stay_keep_their_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        numbers = [int(word) for word in drop_words(" ".join(map(str, range(20))), 0.5, rng).split()]
        assert numbers == sorted(numbers)


def test_one_word_at_least_stays_and_any_of_them_may():
    rng = np.random.default_rng(0)
    assert {drop_words("a b c", 1.0, rng) for _ in range(100)} == {"a", "b", "c"}


@pytest.mark.parametrize("caption", ["two  spaces\tand a tab", "", "   ", "一只狗在草地上"])
def test_a_caption_that_loses_no_word_stays_as_it_is(caption):
    assert drop_words(caption, 0.0, np.random.default_rng(0)) == caption
