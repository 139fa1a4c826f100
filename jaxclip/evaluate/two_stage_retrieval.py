"""Retrieval in two stages: the most similar embeddings, ranked anew by image-text matching.

ALBEF (Li et al. 2021, section 4.1 and appendix A; salesforce/ALBEF, Retrieval.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from jaxclip import evaluate
from jaxclip.config import check_at_least
from jaxclip.data.record import Record, Source, caption_lines
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.evaluate.grounding import grounded_words
from jaxclip.evaluate.pairs import Pairs, embedded_pairs
from jaxclip.evaluate.ranking import ranks, recalls
from jaxclip.evaluate.rescoring import match_scores, most_similar
from jaxclip.evaluate.zeroshot_retrieval import DIRECTIONS, KS

_STAGES = {"": "two stages", "single_stage_": "embeddings alone"}


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Retrieval among all images of a data set and all of their captions, by embeddings and then by matching.

    Attributes:
      k: candidates of a query that are ranked anew; the paper takes 256 on COCO and 128 on Flickr30k. With as many as
        there are, all pairs are matched.
      prefix: put before each caption.
      equal_captions: whether images that share a caption count as answers to each other's captions, for data in which
        captions are not unique.
    """

    needs: ClassVar[tuple[str, ...]] = (
        "encode_image",
        "encode_text",
        "image_tokens",
        "text_states",
        "match",
    )

    k: int = 128
    prefix: str = ""
    equal_captions: bool = False

    def __post_init__(self):
        check_at_least(self, 1, "k")

    def lacks(self, record: Record, prepared: None) -> str:
        """Why a record cannot be evaluated."""
        return "" if caption_lines(record.captions) else "no caption"

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: None) -> evaluate.Result:
        """The metrics of `zeroshot_retrieval`, and with `single_stage_` before their names those of embeddings alone.

        What is not among a query's candidates keeps its rank. The examples show, for some images, which patches made a
        word of their caption match, if the model has `word_places`.

        Raises:
          UserError: no image has a caption.
        """
        pairs = embedded_pairs(encoder, variables, source, skips, self.prefix)
        groups = _groups(pairs) if self.equal_captions else np.arange(len(pairs.images))
        of_captions = groups[pairs.owners]
        first = ranks(encoder.mesh, pairs.images, pairs.texts, groups, of_captions)
        texts = [self.prefix + caption for caption in pairs.captions]
        sides = {
            "text_retrieval": (pairs.images, pairs.texts, groups, of_captions, first.queries),
            "image_retrieval": (pairs.texts, pairs.images, of_captions, groups, first.keys),
        }
        candidates = {
            name: most_similar(encoder.mesh, queries, keys, min(self.k, len(keys)))
            for name, (queries, keys, *_) in sides.items()
        }
        wanted = {name: _as_numbers(name, found, len(texts)) for name, found in candidates.items()}
        every, places = np.unique(np.concatenate([*wanted.values()]), return_inverse=True)
        asked = np.stack(np.divmod(every, len(texts)), axis=1)
        scores = match_scores(encoder, variables, source, skips, pairs.numbers, texts, asked)[places]
        found: dict[str, Int[np.ndarray, "queries"]] = {}
        for name, (_, _, query_groups, key_groups, before) in sides.items():
            mine, scores = scores[: len(wanted[name])], scores[len(wanted[name]) :]
            right = key_groups[candidates[name]] == query_groups[:, None]
            found[name] = reranked(mine.reshape(candidates[name].shape), right, before)
        result = _result({"": found, "single_stage_": {name: side[-1] for name, side in sides.items()}})
        examples = grounded_words(encoder, variables, source, pairs, texts) if encoder.has("word_places") else ()
        return dataclasses.replace(result, outcomes_of=pairs.examples, examples=examples)


def reranked(
    scores: Float[np.ndarray, "queries k"], right: Any, before: Int[np.ndarray, "queries"]
) -> Int[np.ndarray, "queries"]:
    """The rank of the best right candidate by its score, 0 for the first; of a query without one, its rank before.

    Of equal scores, the wrong candidate is ahead if it was.

    >>> reranked(np.array([[0.1, 0.9], [0.1, 0.9]]), np.array([[False, True], [False, False]]), np.array([1, 7]))
    array([0, 7])
    """
    order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")
    hits = np.take_along_axis(right, order, axis=1)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), before)


def _as_numbers(name: str, candidates: Int[np.ndarray, "queries k"], texts: int) -> Int[np.ndarray, "pairs"]:
    """A number for each pair: that of its image times the number of texts, and that of its text."""
    queries = np.repeat(np.arange(len(candidates)), candidates.shape[1])
    image, text = (queries, candidates.ravel()) if name == "text_retrieval" else (candidates.ravel(), queries)
    return image.astype(np.int64) * texts + text


def _groups(pairs: Pairs) -> Int[np.ndarray, "images"]:
    """Of each image the first image that it shares a caption with, directly or by way of others."""
    groups = np.arange(len(pairs.images))
    first: dict[str, int] = {}
    for caption, owner in zip(pairs.captions, pairs.owners.tolist(), strict=True):
        other = first.setdefault(" ".join(caption.lower().split()), owner)
        if groups[other] != groups[owner]:
            old, new = sorted((groups[other], groups[owner]), reverse=True)
            groups[groups == old] = new
    return groups


def _result(stages: Mapping[str, Mapping[str, Int[np.ndarray, "queries"]]]) -> evaluate.Result:
    metrics: dict[str, float | None] = {}
    outcomes: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for prefix, found in stages.items():
        for name, values in found.items():
            recall = recalls(values, KS)
            metrics |= {f"{prefix}{name}_recall@{k}": value for k, value in recall.items()}
            metrics |= {f"{prefix}{name}_median_rank": float(np.median(values)) + 1}
            metrics |= {f"{prefix}{name}_mean_rank": float(np.mean(values)) + 1}
            outcomes |= {f"{prefix}{name}_recall@{k}": values < k for k in KS}
            rows[f"{DIRECTIONS[name]}, {_STAGES[prefix]}"] = tuple(recall.values())
    shown = {name: metrics[f"{name}_recall@1"] or 0.0 for name in stages[""]}
    alone = {name: metrics[f"single_stage_{name}_recall@1"] or 0.0 for name in stages[""]}
    said = ", ".join(
        f"{spoken} R@1 {100 * shown[name]:.1f} ({100 * alone[name]:.1f} by embeddings alone)"
        for name, spoken in (("image_retrieval", "text to image"), ("text_retrieval", "image to text"))
    )
    return evaluate.Result(
        metrics=metrics,
        summary=said,
        headline=(f"{shown['image_retrieval']:.1%} R@1", f"{DIRECTIONS['image_retrieval']}\ntwo stages"),
        tables=(evaluate.Table("Retrieval in two stages", tuple(f"R@{k}" for k in KS), rows, fractions=True),),
        outcomes=outcomes,
    )
