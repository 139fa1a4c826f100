"""Zero-shot classification with templates averaged in embedding space (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.encoder import EmbeddedSet, Encoder, class_embeddings
from jaxclip.errors import UserError
from jaxclip.evaluate.ranking import ranks, recalls


def classify(
    encoder: Encoder, params: Any, embedded: EmbeddedSet, classes: Sequence[str], templates: Sequence[str], name: str
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Accuracy over the labelled pictures of a set.

    Returns:
      CLIP_benchmark's metrics as fractions (`acc1`, `acc5`, `mean_per_class_recall`; acc5 is None below five
      classes), and the recall of each class name that occurs.

    Raises:
      UserError: no picture has a label, or a label lies outside the classes.
    """
    kept = [row for row, label in enumerate(embedded.labels) if label is not None]
    if not kept:
        raise UserError(f"evals.{name}: no picture has a class label (a .cls member or a label column)")
    labels = np.array([embedded.labels[row] for row in kept])
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if len(outside):
        raise UserError(f"evals.{name}: label {outside[0]} is outside the {len(classes)} classes given")
    texts = class_embeddings(encoder, params, classes, templates)
    found = ranks(encoder.mesh, embedded.images[kept], texts, labels, np.arange(len(classes)))
    per_label = {int(label): float(np.mean(found[labels == label] == 0)) for label in np.unique(labels)}
    # Two classes of a list may bear one name, and still are two classes.
    names = np.array(classes)[labels]
    per_name = {classes[label]: float(np.mean(found[names == classes[label]] == 0)) for label in per_label}
    accuracy = recalls(found, (1, 5))
    return {
        "acc1": accuracy[1],
        "acc5": accuracy[5] if len(classes) >= 5 else None,
        "mean_per_class_recall": float(np.mean(list(per_label.values()))),
    }, per_name
