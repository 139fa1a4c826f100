"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxclip.encoder import EmbeddedSet, Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.ranking import ranks, recalls


def retrieve(encoder: Encoder, params: Any, embedded: EmbeddedSet, name: str) -> dict[str, float]:
    """CLIP_benchmark's metrics as fractions, over all pictures and all of their captions.

    `text_retrieval_recall@k`: pictures that have one of their captions among the k most similar texts.
    `image_retrieval_recall@k`: captions that have their picture among the k most similar pictures.

    Raises:
      UserError: no picture has a caption.
    """
    kept = [row for row, captions in enumerate(embedded.captions) if captions]
    if not kept:
        raise UserError(f"evals.{name}: no picture has a caption to retrieve")
    images = embedded.images[kept]
    owners = np.array([index for index, row in enumerate(kept) for _ in embedded.captions[row]])
    texts = encoder.texts(params, [caption for row in kept for caption in embedded.captions[row]])
    numbers = np.arange(len(kept))
    by_text = recalls(ranks(encoder.mesh, texts, images, owners, numbers))
    by_image = recalls(ranks(encoder.mesh, images, texts, numbers, owners))
    return {f"image_retrieval_recall@{k}": value for k, value in by_text.items()} | {
        f"text_retrieval_recall@{k}": value for k, value in by_image.items()
    }
