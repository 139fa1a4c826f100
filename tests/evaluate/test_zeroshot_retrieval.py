"""Recall in both directions of retrieval, compared with results by hand."""

from __future__ import annotations

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set

from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError
from jaxclip.evaluate.zeroshot_retrieval import Evaluator


def retrieve(encoder: LookUp) -> dict[str, float]:
    return Evaluator("data").run(encoder, None, NoRecords(), SkipLog(), None).metrics


@pytest.mark.parametrize("devices", (1, 8))
def test_with_several_captions_per_image(devices):
    """By hand: three images on three axes, and five captions between them.

    Captions to images: a0, a1 and c0 find theirs first, b0 second, b1 third.
    Images to captions: a and c find one of their own first. Only a1 ranks behind b's own best, b0.
    """
    table = {
        "a0": [1.0, 0.1, 0.0],
        "a1": [0.9, 0.7, 0.0],
        "b0": [0.6, 0.5, 0.0],
        "b1": [0.5, 0.1, 0.2],
        "c0": [0.0, 0.2, 0.9],
    }
    images = embedded_set(np.eye(3), captions=[["a0", "a1"], ["b0", "b1"], ["c0"]])
    metrics = retrieve(LookUp(table, images, devices))
    assert metrics == pytest.approx(
        {
            "image_retrieval_recall@1": 3 / 5,
            "image_retrieval_recall@5": 1.0,
            "image_retrieval_recall@10": 1.0,
            "text_retrieval_recall@1": 2 / 3,
            "text_retrieval_recall@5": 1.0,
            "text_retrieval_recall@10": 1.0,
            "image_retrieval_median_rank": 1,
            "image_retrieval_mean_rank": (3 * 1 + 2 + 3) / 5,
            "text_retrieval_median_rank": 1,
            "text_retrieval_mean_rank": (2 * 1 + 2) / 3,
        }
    )


def test_a_prefix_is_put_before_each_caption():
    table = {"a photo of a cat": [1.0, 0.0], "a photo of a dog": [0.0, 1.0]}
    encoder = LookUp(table, embedded_set(np.eye(2), captions=[["a cat"], ["a dog"]]))
    result = Evaluator("data", prefix="a photo of ").run(encoder, None, NoRecords(), SkipLog(), None)
    assert result.metrics["image_retrieval_recall@1"] == 1


def test_recalls_at_five_and_ten():
    """Of twelve images on a line, each caption points at the far end: the last images come first."""
    table = {str(number): [1.0] for number in range(12)}
    images = embedded_set([[number] for number in range(12)], captions=[[str(number)] for number in range(12)])
    metrics = retrieve(LookUp(table, images))
    by_text = [metrics[f"image_retrieval_recall@{k}"] for k in (1, 5, 10)]
    assert by_text == pytest.approx([1 / 12, 5 / 12, 10 / 12])


def test_images_without_a_caption_are_left_out():
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    # The image in the middle is nearest to both captions.
    images = embedded_set([[1, 0], [9, 9], [0, 1]], captions=[["a"], [], ["b"]])
    metrics = retrieve(LookUp(table, images))
    assert set(metrics.values()) == {1.0}


def test_no_captions_at_all_is_one_line():
    with pytest.raises(UserError, match=r"^no image has a caption to retrieve$"):
        retrieve(LookUp({}, embedded_set(np.eye(2))))


def test_the_summary_and_the_headline_are_of_the_first_direction():
    table = {"a": [1.0, 0.0], "b": [1.0, 0.1]}
    encoder = LookUp(table, embedded_set(np.eye(2), captions=[["a"], ["b"]]))
    result = Evaluator("data").run(encoder, None, NoRecords(), SkipLog(), None)
    assert result.summary == "text to image R@1/5/10 50.0/100.0/100.0, image to text R@1/5/10 100.0/100.0/100.0"
    assert result.headline == ("50.0% R@1", "caption → image\nR@5 100.0% · R@10 100.0%")


def test_captions_look_for_the_other_captions_of_their_image():
    table = {"a": [1.0, 0, 0], "a2": [0.9, 0.1, 0], "b": [0, 1.0, 0], "b2": [0.7, 0.6, 0], "c": [0, 0, 1.0]}
    images = embedded_set(np.eye(3), captions=[["a", "a2"], ["b", "b2"], ["c"]])
    result = Evaluator("data", text_to_text=True).run(LookUp(table, images), None, NoRecords(), SkipLog(), None)
    # a and a2 find each other first; b has b2 first, which itself has a, a2 and b. c has no other caption.
    assert result.metrics["text_to_text_recall@1"] == 0.75
    assert result.metrics["text_to_text_median_rank"] == 1.0 and result.metrics["text_to_text_mean_rank"] == 1.5
    assert "text to text R@1/5/10 75.0/100.0/100.0" in result.summary
    with pytest.raises(UserError, match="text_to_text: no image has two captions"):
        alone = embedded_set(np.eye(3), captions=[["a"], ["b"], ["c"]])
        Evaluator("data", text_to_text=True).run(LookUp(table, alone), None, NoRecords(), SkipLog(), None)
