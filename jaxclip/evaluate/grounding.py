"""Words of captions and the patches that made them match their image, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.data.loader import examples
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.evaluate.evaluator import Example
from jaxclip.evaluate.lit import enlarged, lit_words
from jaxclip.evaluate.pairs import Pairs

_EXAMPLES = 10


def grounded_words(
    encoder: Encoder, variables: Any, source: Source, pairs: Pairs, texts: Sequence[str]
) -> tuple[Example, ...]:
    """Some images with the first text of each, and for every word of it the image lit by the model's `word_places`.

    The images are spread over the data; no result picks them.

    Args:
      encoder, variables: of the model.
      source: of the images.
      pairs: its images and captions.
      texts: the captions as the model reads them.
    """
    assert encoder.image is not None and encoder.tokenizer is not None
    chosen = np.unique(np.linspace(0, len(pairs.images) - 1, _EXAMPLES, dtype=int)).tolist()
    first = np.searchsorted(pairs.owners, chosen)
    # Those that cannot be read were counted before.
    read = examples(source, [pairs.numbers[i] for i in chosen], encoder.image.size, encoder.image.pixels, SkipLog())
    shown = [(image, texts[i]) for i, (_, image, _) in zip(first, read, strict=True) if image is not None]
    if not shown:
        return ()
    images, captions = zip(*shown, strict=True)
    tokens, ends = encoder.tokenize(captions)
    places = encoder("word_places", variables, np.stack(images), tokens, ends)
    return tuple(
        Example(enlarged(image), caption, lit_words(image, row, weights[1:], encoder.tokenizer))
        for image, caption, row, weights in zip(images, captions, tokens, places, strict=True)
    )
