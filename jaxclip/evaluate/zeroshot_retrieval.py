"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxclip import evaluate
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.ranking import ranks, recalls

KS = (1, 5, 10)
# CLIP_benchmark names recall by what is retrieved: "image_retrieval_recall@5" finds the image of a caption.
DIRECTIONS = {"image_retrieval": "caption → image", "text_retrieval": "image → caption"}


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Retrieval among all images of a data set and all of their captions."""

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: None) -> evaluate.Result:
        """CLIP_benchmark's metrics as fractions. Images without a caption are left out.

        `text_retrieval_recall@k`: images that have one of their captions among the k most similar texts.
        `image_retrieval_recall@k`: captions that have their image among the k most similar images.

        Raises:
          UserError: no image has a caption.
        """
        embedded = encoder.source(variables, source, skips)
        kept = [row for row, captions in enumerate(embedded.captions) if captions]
        if not kept:
            raise UserError("no image has a caption to retrieve")
        images = embedded.outputs[kept]
        owners = np.array([index for index, row in enumerate(kept) for _ in embedded.captions[row]])
        texts = encoder.texts(variables, [caption for row in kept for caption in embedded.captions[row]])
        numbers = np.arange(len(kept))
        by_text = recalls(ranks(encoder.mesh, texts, images, owners, numbers), KS)
        by_image = recalls(ranks(encoder.mesh, images, texts, numbers, owners), KS)
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
