"""Images of a data set, read back by their numbers for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxclip.data.loader import examples
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.evaluate.evaluator import Example

# The report shows images in this size.
_PIXELS = 112


class Shown(NamedTuple):
    """One image to show.

    Attributes:
      number: of its record in the source.
      text: what stands under it.
      right: whether the model's answer is right; None if that is not asked.
    """

    number: int
    text: str
    right: bool | None = None


def read_back(encoder: Encoder, source: Source, shown: Sequence[Shown]) -> tuple[Example, ...]:
    """The images as the model sees them, of 112 pixels at most; what can no longer be read is left out."""
    if encoder.image is None:
        return ()
    size = min(_PIXELS, encoder.image.size)
    # Those that cannot be read were counted when they were evaluated.
    read = examples(source, [one.number for one in shown], size, encoder.image.pixels, SkipLog())
    return tuple(
        Example(image, one.text, right=one.right)
        for one, (_, image, _) in zip(shown, read, strict=True)
        if image is not None
    )
