"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxclip import evaluate
from jaxclip.data.record import Record, Source, caption_lines
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.evaluate.pairs import embedded_pairs
from jaxclip.evaluate.ranking import recalls

KS = (1, 5, 10)
# CLIP_benchmark names recall by what is retrieved: "image_retrieval_recall@5" finds the image of a caption.
DIRECTIONS = {"image_retrieval": "caption → image", "text_retrieval": "image → caption"}


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Retrieval among all images of a data set and all of their captions."""

    def lacks(self, record: Record, prepared: None) -> str:
        """Why a record cannot be evaluated."""
        return "" if caption_lines(record.captions) else "no caption"

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: None) -> evaluate.Result:
        """CLIP_benchmark's metrics as fractions. Images without a caption are left out.

        `text_retrieval_recall@k`: images that have one of their captions among the k most similar texts.
        `image_retrieval_recall@k`: captions that have their image among the k most similar images.

        Raises:
          UserError: no image has a caption.
        """
        pairs = embedded_pairs(encoder, variables, source, skips)
        by_text = recalls(pairs.ranks_of_images(encoder.mesh), KS)
        by_image = recalls(pairs.ranks_of_captions(encoder.mesh), KS)
        return _result({"image_retrieval": by_text, "text_retrieval": by_image})


def _result(recall: dict[str, dict[int, float]]) -> evaluate.Result:
    first, *others = KS
    found = recall["image_retrieval"]
    more = " · ".join(f"R@{k} {found[k]:.1%}" for k in others)
    spoken = {"image_retrieval": "text to image", "text_retrieval": "image to text"}
    return evaluate.Result(
        metrics={f"{name}_recall@{k}": value for name, values in recall.items() for k, value in values.items()},
        summary=", ".join(
            f"{spoken[name]} R@{'/'.join(map(str, KS))} " + "/".join(f"{100 * values[k]:.1f}" for k in KS)
            for name, values in recall.items()
        ),
        headline=(f"{found[first]:.1%} R@{first}", f"{DIRECTIONS['image_retrieval']}\n{more}"),
        tables=(
            evaluate.Table(
                "Retrieval",
                tuple(f"R@{k}" for k in KS),
                {words: tuple(recall[name][k] for k in KS) for name, words in DIRECTIONS.items()},
                fractions=True,
            ),
        ),
    )
