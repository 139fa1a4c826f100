"""Image-text retrieval: recall at 1, 5 and 10, median and mean rank, in both directions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxclip import evaluate
from jaxclip.data.record import Record, Source, caption_lines
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.pairs import Pairs, embedded_pairs
from jaxclip.evaluate.ranking import ranks, recalls
from jaxclip.evaluate.shown import Shown, read_back

KS = (1, 5, 10)
# CLIP_benchmark names recall by what is retrieved: "image_retrieval_recall@5" finds the image of a caption.
DIRECTIONS = {
    "image_retrieval": "caption → image",
    "text_retrieval": "image → caption",
    "text_to_text": "caption → caption",
}
_SHOWN = 12  # images of the report whose captions find them, and as many whose captions do not


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Retrieval among all images of a data set and all of their captions.

    Attributes:
      prefix: put before each caption, such as "a photo of " (Radford et al. 2021, section 3.1.4).
      text_to_text: whether captions also look for the other captions of their image (Parekh et al. 2021, section 5.1).
    """

    prefix: str = ""
    text_to_text: bool = False

    def lacks(self, record: Record, prepared: None) -> str:
        """Why a record cannot be evaluated."""
        return "" if caption_lines(record.captions) else "no caption"

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: None) -> evaluate.Result:
        """CLIP_benchmark's metrics as fractions. Images without a caption are left out.

        `text_retrieval_recall@k`: images that have one of their captions among the k most similar texts.
        `image_retrieval_recall@k`: captions that have their image among the k most similar images.
        `text_to_text_recall@k`: captions that have another caption of their image among the k most similar others.
        `..._median_rank`, `..._mean_rank`: of an image's best caption and of a caption's image, from 1.

        The examples are images with a caption that finds them first, and with one for which they rank worst.

        Raises:
          UserError: no image has a caption, or with `text_to_text` none has two.
        """
        pairs = embedded_pairs(encoder, variables, source, skips, self.prefix)
        of_images, of_captions = pairs.ranks(encoder.mesh)
        examples = read_back(encoder, source, _first_and_last(pairs, of_captions))
        found = {"image_retrieval": of_captions, "text_retrieval": of_images}
        if self.text_to_text:
            found["text_to_text"] = _of_texts(encoder, pairs)
        result = _result(found)
        return dataclasses.replace(result, outcomes_of=pairs.examples, examples=examples)


def _of_texts(encoder: Encoder, pairs: Pairs) -> Int[np.ndarray, "captions"]:
    """The rank of the best other caption of the same image, of each caption whose image has several."""
    several = np.bincount(pairs.owners)[pairs.owners] > 1
    if not several.any():
        raise UserError("text_to_text: no image has two captions")
    found = ranks(encoder.mesh, pairs.texts, pairs.texts, pairs.owners, pairs.owners, among_themselves=True)
    return found.queries[several]


def _first_and_last(pairs: Pairs, ranks: Int[np.ndarray, "captions"]) -> list[Shown]:
    """The captions most similar to their images of those that find them first, and those that find them last.

    Of each image there is one caption of either kind.
    """
    first = np.flatnonzero(ranks == 0)
    own = np.einsum("ij,ij->i", pairs.texts[first], pairs.images[pairs.owners[first]])
    order = np.argsort(-ranks, kind="stable")
    shown = []
    for right, captions in ((True, first[np.argsort(-own, kind="stable")]), (False, order[ranks[order] > 0])):
        of_images: dict[int, int] = {}
        for caption in captions:
            of_images.setdefault(int(pairs.owners[caption]), int(caption))
            if len(of_images) == _SHOWN:
                break
        for image, caption in of_images.items():
            text = f"{pairs.captions[caption]} (rank {ranks[caption] + 1:,} of {len(pairs.images):,})"
            shown.append(Shown(pairs.numbers[image], text, right))
    return shown


def _result(of: dict[str, Int[np.ndarray, "queries"]]) -> evaluate.Result:
    recall = {name: recalls(values, KS) for name, values in of.items()}
    middle = {name: (float(np.median(values)) + 1, float(np.mean(values)) + 1) for name, values in of.items()}
    metrics = {f"{name}_recall@{k}": value for name, values in recall.items() for k, value in values.items()}
    for name, values in middle.items():
        metrics |= {f"{name}_median_rank": values[0], f"{name}_mean_rank": values[1]}
    first, *others = KS
    found = recall["image_retrieval"]
    more = " · ".join(f"R@{k} {found[k]:.1%}" for k in others)
    spoken = {"image_retrieval": "text to image", "text_retrieval": "image to text", "text_to_text": "text to text"}
    return evaluate.Result(
        metrics=metrics,
        summary=", ".join(
            f"{spoken[name]} R@{'/'.join(map(str, KS))} " + "/".join(f"{100 * values[k]:.1f}" for k in KS)
            for name, values in recall.items()
        ),
        headline=(f"{found[first]:.1%} R@{first}", f"{DIRECTIONS['image_retrieval']}\n{more}"),
        tables=(
            evaluate.Table(
                "Retrieval",
                tuple(f"R@{k}" for k in KS),
                {DIRECTIONS[name]: tuple(values[k] for k in KS) for name, values in recall.items()},
                fractions=True,
            ),
            evaluate.Table(
                "Rank of the right answer",
                ("median", "mean"),
                {DIRECTIONS[name]: values for name, values in middle.items()},
            ),
        ),
        outcomes={f"{name}_recall@{k}": values < k for name, values in of.items() for k in KS},
    )
