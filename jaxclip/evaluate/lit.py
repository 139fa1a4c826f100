"""Images lit where a model looked at for the words of a text, for the report."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from jaxclip.data.tokenizers import Tokenizer
from jaxclip.evaluate.evaluator import Example

_PIXELS = 112


def lit_words(
    image: UInt8[np.ndarray, "size size 3"],
    tokens: Int[np.ndarray, "length"],
    weights: Float[np.ndarray, "words places"],
    tokenizer: Tokenizer,
) -> tuple[Example, ...]:
    """Each word of a text, and the image lit where the weights of the word's tokens are.

    Args:
      image: as the model sees it.
      tokens: of the text.
      weights: of all tokens but the first, which is the start token.
      tokenizer: of the tokens.
    """
    ends = np.flatnonzero(tokens[1:] == tokenizer.end_id)
    count = int(ends[0]) if len(ends) else len(tokens) - 1
    found: list[tuple[str, list[np.ndarray]]] = []
    for number in range(count):
        text = tokenizer.decode(tokens[: number + 2]).split()
        if len(text) > len(found):
            found.append(("", []))
        if found:
            found[-1] = (text[-1] if text else "", [*found[-1][1], weights[number]])
    return tuple(Example(_lit(image, np.mean(own, axis=0)), word) for word, own in found)


def _lit(image: UInt8[np.ndarray, "size size 3"], weights: Float[np.ndarray, "places"]) -> np.ndarray:
    """The image, dark where the weights are small; uint8 [112, 112, 3]."""
    side = int(len(weights) ** 0.5)
    grid = weights[len(weights) - side * side :].reshape(side, side)  # A vision transformer's class token is the first.
    grid = grid / max(float(grid.max()), 1e-9)
    light = Image.fromarray(np.round(255 * grid).astype(np.uint8)).resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
    return np.round(enlarged(image) * (0.15 + 0.85 * np.asarray(light)[..., None] / 255)).astype(np.uint8)


def enlarged(image: UInt8[np.ndarray, "size size 3"]) -> np.ndarray:
    """The image as the report shows it, uint8 [112, 112, 3]."""
    return np.asarray(Image.fromarray(image).resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC))
