"""The training loss on held-out pairs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxclip import sharding
from jaxclip.data.loader import examples
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.step import Step

_MAX_BATCHES = 8


def validation_loss(
    step: Step, variables: Any, source: Source, tokenizer: Tokenizer, batch_size: int, skips: SkipLog
) -> dict[str, float]:
    """The mean loss and in-batch accuracy over up to eight batches spread over a source, first captions, no randomness.

    A contrastive loss depends on its batch size, so batches are as large as in training where the source has enough
    records, and never partly filled.

    Returns:
      `validation_loss` in nats, and `validation_accuracy` where the method has one.

    Raises:
      UserError: the source has fewer records than there are devices, or no captions.
    """
    devices = step.mesh.size
    size = min(batch_size, len(source) // devices * devices)
    if not size:
        raise UserError(f"data.eval: {len(source)} records are too few for {devices} devices")
    batches = min(_MAX_BATCHES, len(source) // size)
    share = size // jax.process_count()
    first = jax.process_index() * share
    ids = np.linspace(0, len(source) - 1, batches * size).astype(int).reshape(batches, size)
    mine = ids[:, first : first + share]
    method = step.method
    stream = examples(source, mine.ravel().tolist(), method.image_size, method.pixels, skips)
    totals: dict[str, float] = {}
    image = np.zeros((method.image_size,) * 2 + (3,), np.uint8)
    caption = ""
    for _ in range(batches):
        images, captions = [], []
        for _ in range(share):
            _, picture, record = next(stream)
            if picture is not None and record is not None and record.captions:
                image, caption = picture, record.captions[0]
            # The place of an unreadable record is taken by the one before it.
            images.append(image)
            captions.append(caption)
        tokens, ends = tokenizer(captions, method.context_length)
        batch = {"image": np.stack(images), "text": tokens, "text_end": ends}
        rows = sharding.batch_sharding(step.mesh)
        metrics = step.validate(variables, jax.make_array_from_process_local_data(rows, batch))
        for name, metric in (("validation_loss", "loss"), ("validation_accuracy", "batch_accuracy")):
            if metric in metrics:
                totals[name] = totals.get(name, 0.0) + float(metrics[metric]) / batches
    return totals
