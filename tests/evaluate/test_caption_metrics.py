"""BLEU and CIDEr-D of captions, by hand and compared with the COCO evaluation's code."""

from __future__ import annotations

import json
import math
import pathlib
import random
import shutil
import subprocess
from typing import Any

import pytest
from paths import TESTS

from jaxclip.errors import UserError
from jaxclip.evaluate.caption_metrics import bleu, cider, words

# As the evaluation's Java program gives them, see the last test.
TOKENS = {
    "A cat, a dog.": "a cat a dog",
    "A man's dog doesn't like children's toys; it's sad": "a man 's dog does n't like children 's toys it 's sad",
    "The woman (in red) said \"hello\" to 'him'!": "the woman -lrb- in red -rrb- said hello to him",
    "A T-shirt-wearing man can't, cannot, gonna, gotta": "a t-shirt-wearing man ca n't can not gon na got ta",
    "Two dogs & a cat... walking -- or running - at 3:30 p.m.": "two dogs & a cat walking or running at 3:30 p.m.",
    "It costs $5.50, or 1,000 dollars, i.e. 50% off": "it costs $ 5.50 or 1,000 dollars i.e. 50 % off",
    "A black/white zebra and/or horse": "a black/white zebra and/or horse",
    "Mr. Smith and J. Jones live on Main St. in the U.S.": "mr. smith and j. jones live on main st. in the u.s.",
    "A player with no. 5, no. Really": "a player with no. 5 no really",
    "The boys' bikes, 'til nine o'clock, rock 'n' roll": "the boys bikes 'til nine o'clock rock 'n' roll",
    "a sign reading What?! Yes!!": "a sign reading what ?! yes !!",
    "\u201csmart\u201d \u2018quotes\u2019 it\u2019s \u2013 a caf\u00e9 \u2014 \u2026": "smart quotes it 's a caf\u00e9",
    "AT&T and r&b, x+y #1 @ home": "at&t and r & b x + y # 1 @ home",
    "[a] {b} 100-year-old, 20's and 1990s '90s": "-lsb- a -rsb- -lcb- b -rcb- 100-year-old 20 's and 1990s '90s",
    "no space.After it,or here:there 2:1": "no space.after it or here there 2:1",
    "'tis a 5'10\" man": "'t is a 5 10 man",
}


@pytest.mark.parametrize(("text", "expected"), TOKENS.items())
def test_words_are_those_of_the_coco_evaluation(text, expected):
    assert words(text) == expected.split()


@pytest.mark.parametrize("text", ["", "  ", "...", " . , ; '' - "])
def test_punctuation_alone_has_no_words(text):
    assert words(text) == []


def test_the_words_of_one_of_the_references_have_every_ngram():
    captions = ["a dog runs in the snow", "two cats sleep on a bed"]
    assert bleu(captions, [["a bird", captions[0]], [captions[1]]]) == pytest.approx((1, 1, 1, 1), abs=1e-8)


def test_case_and_punctuation_make_no_difference():
    first, second = ["a man 's dog runs off"], ["A man's dog runs off."]
    assert bleu(first, [second]) == bleu(first, [first]) == bleu(second, [first])


def test_captions_that_share_no_word_have_none():
    found = bleu(["a dog runs off", "two cats sleep here"], [["three birds"], ["one horse"]])
    assert found == pytest.approx((0, 0, 0, 0), abs=1e-12)
    assert cider(["a dog runs off", "two cats sleep here"], [["three birds"], ["one horse"]]) == 0


def test_precisions_are_those_of_the_whole_set():
    # Words: 3 of 4, and 2 of 2. Pairs: 2 of 3, and 1 of 1. Triples: 1 of 2. Quadruples: 0 of 1.
    found = bleu(["a dog runs off", "red bus"], [["a dog runs away"], ["red bus"]])
    assert found[:3] == pytest.approx((5 / 6, math.sqrt(5 / 6 * 3 / 4), (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3)), abs=1e-8)
    assert 0 <= found[3] < 1e-3


def test_a_word_counts_as_often_as_it_occurs_in_the_one_reference_that_has_most_of_it():
    # The example of the paper: "the" occurs twice in one reference, once in the other.
    candidate, references = "the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu([candidate], [references])[0] == pytest.approx(2 / 7, abs=1e-8)


def test_short_candidates_are_penalized_by_the_lengths_of_the_whole_set():
    # 3 and 6 words, where the closest references have 6 and 5: 9 for 11.
    captions = ["a dog runs", "two cats sleep on a bed"]
    references = [["a dog runs in the snow"], ["two cats on a bed", "a bed of two cats who do sleep on it"]]
    assert bleu(captions, references)[0] == pytest.approx(math.exp(1 - 11 / 9), abs=1e-8)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_references_equally_close_in_length_the_shorter_one_counts(order):
    # 3 words, and references of 2 and 4: with 2 there is no penalty.
    references = ["a dog", "a dog runs off"][::order]
    assert bleu(["a dog runs"], [references])[0] == pytest.approx(1, abs=1e-8)
    # The closest counts even if another is shorter.
    assert bleu(["a dog runs"], [["a", "a dog runs off"]])[0] == pytest.approx(math.exp(-1 / 3), abs=1e-8)


def test_cider_is_ten_times_the_cosine_of_weighted_ngrams():
    # Of two images, each n-gram in the references of one: all weights are ln 2, or 0 for "a", which both have.
    # "a dog runs" and "a dog sits" share "dog" of two weighted words and "a dog" of two pairs, and no triple.
    expected = 10 * (1 / 2 + 1 / 2 + 0 + 0) / 4
    found = cider(["a dog runs", "a cat"], [["a dog sits"], ["a bus"]])
    # The second shares only "a", which tells the images apart in nothing.
    assert found == pytest.approx(expected / 2, abs=1e-9)
    # Weights count images, not references.
    assert cider(["a dog runs", "a cat"], [["a dog sits"] * 3, ["a bus"]]) == pytest.approx(expected / 2, abs=1e-9)


def test_cider_counts_a_repeated_word_as_often_as_the_reference_and_penalizes_length():
    # "dog" three times against once: weights 3 ln 2 and ln 2, clipped to ln 2, so the cosine of words is 1/3. The
    # pair "dog dog" is not in the reference. Two words longer.
    found = cider(["dog dog dog", "bus"], [["dog"], ["bus"]])
    first = 10 / 4 * (1 / 3) * math.exp(-(2**2) / (2 * 6**2))
    second = 10 / 4  # only the order of single words has an n-gram
    assert found == pytest.approx((first + second) / 2, abs=1e-9)


def test_cider_of_equal_captions_is_ten_and_of_several_references_the_mean():
    captions = ["a dog runs in snow", "two cats sleep on beds"]
    assert cider(captions, [[caption] for caption in captions]) == pytest.approx(10, abs=1e-9)
    halved = cider(captions, [[caption, "nothing that both have"] for caption in captions])
    assert halved == pytest.approx(5, abs=1e-9)


def test_cider_of_one_image_is_0():
    assert cider(["a dog runs"], [["a dog runs"]]) == 0


SOME_WORDS = ("a", "the", "dog", "cat", "red", "runs", "sleeps", "on", "in", "'s", "bus", "n't")


def random_set(rng: random.Random) -> dict[str, list]:
    """Captions of one to eight images; those of an image share most words.

    Some candidates are empty. No reference is, because pycocoevalcap cannot have only empty ones.
    """

    def varied(caption: list[str], shortest: int) -> str:
        """The beginning of a caption, some words replaced."""
        end = rng.randrange(shortest, len(caption) + 1)
        return " ".join(rng.choice(SOME_WORDS) if rng.random() < 0.2 else word for word in caption[:end])

    images = [rng.choices(SOME_WORDS, k=rng.randrange(1, 13)) for _ in range(rng.randrange(1, 9))]
    return {
        "candidates": [varied(caption, 0) for caption in images],
        "references": [[varied(caption, 1) for _ in range(rng.randrange(1, 6))] for caption in images],
    }


def scores(captions: dict[str, list]) -> list[float]:
    return [*bleu(**captions), cider(**captions)]


def test_the_order_of_images_and_of_references_makes_no_difference():
    rng = random.Random(1)
    for _ in range(20):
        captions = random_set(rng)
        order = rng.sample(range(len(captions["candidates"])), len(captions["candidates"]))
        shuffled = {
            "candidates": [captions["candidates"][image] for image in order],
            "references": [captions["references"][image][::-1] for image in order],
        }
        assert scores(shuffled) == pytest.approx(scores(captions), abs=1e-12)


def test_an_empty_candidate_takes_its_share_of_cider_and_lengthens_the_penalty():
    captions, references = (
        ["a dog runs in snow", "two cats sleep on beds"],
        [["a dog runs in snow"], ["two cats sleep"]],
    )
    whole = cider(captions, references)
    second = 2 * whole - 10
    assert cider(["", captions[1]], references) == pytest.approx(second / 2, abs=1e-9)
    # 5 words for 8, all of the first.
    assert bleu([captions[0], ""], references)[0] == pytest.approx(math.exp(1 - 8 / 5), abs=1e-8)
    assert scores({"candidates": ["", ""], "references": references}) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("metric", [bleu, cider])
@pytest.mark.parametrize(
    ("candidates", "references", "kind", "said"),
    [
        ([], [], UserError, "there is no caption"),
        (["a", "b"], [["a"], []], UserError, "^image 1, counted from 0, has no reference"),
        (["a", "b"], [["a"]], ValueError, "shorter"),
        (["a"], [["a"], ["b"]], ValueError, "longer"),
    ],
)
def test_captions_without_a_reference_are_refused(metric, candidates, references, kind, said):
    with pytest.raises(kind, match=said):
        metric(candidates, references)


def peer(python: str, kind: str, folder: pathlib.Path, given: Any) -> Any:
    (folder / "in.json").write_text(json.dumps(given))
    program = str(TESTS / "helpers" / "peer_captions.py")
    subprocess.run([python, program, kind, str(folder / "in.json"), str(folder / "out.json")], check=True)
    return json.loads((folder / "out.json").read_text())


@pytest.mark.peer
def test_pycocoevalcap_gives_the_same_scores(tmp_path, peer_python):
    rng = random.Random(0)
    sets = [random_set(rng) for _ in range(400)]
    theirs = peer(peer_python, "scores", tmp_path, sets)
    for captions, expected in zip(sets, theirs, strict=True):
        assert scores(captions) == pytest.approx(expected, abs=1e-9), captions
    assert sum(found[3] > 0.1 and found[4] > 1 for found in theirs) > 100, "few sets have matches of each order"


@pytest.mark.peer
def test_pycocoevalcap_gives_the_same_words(tmp_path, peer_python):
    if shutil.which("java") is None:
        pytest.skip("pycocoevalcap's tokenizer needs java")
    theirs = peer(peer_python, "tokens", tmp_path, list(TOKENS))
    assert theirs == [expected.split() for expected in TOKENS.values()]
