"""Images, captions and their similarities for the report."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from jaxclip.data.images.decode import Unreadable, open_image
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder

_IMAGES = 200
_PIXELS = 96


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images of the validation set, their captions, and how similar the model finds each to each.

    Attributes:
      images: uint8 [n, height, width, 3], n up to about 200.
      captions: n captions, one of each image.
      similarity: float32 [n, n], the cosine of image i and caption j.

    Raises:
      ValueError: the three are not of the same n images.
    """

    images: np.ndarray
    captions: list[str]
    similarity: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.captions)
        if self.images.ndim != 4 or len(self.images) != size or self.similarity.shape != (size, size):
            raise ValueError(
                f"a gallery of {size} captions needs images [{size}, height, width, 3] and similarity [{size}, {size}],"
                f" not {list(self.images.shape)} and {list(self.similarity.shape)}"
            )


def gallery(encoder: Encoder, variables: Any, source: Source) -> Gallery | None:
    """Up to 200 images spread over a source with their first captions; every process has to take part.

    Returns:
      None if the model does not embed both images and texts, or if no image can be used.
    """
    if not encoder.has("encode_image", "encode_text"):
        return None
    ids = np.unique(np.linspace(0, len(source) - 1, _IMAGES).astype(int)).tolist()
    usable: list[tuple[int, str, np.ndarray]] = []
    for number, record in zip(ids, source.read(ids), strict=True):
        if isinstance(record, Record) and record.captions:
            with contextlib.suppress(Unreadable):
                usable.append((number, record.captions[0], thumbnail(record.image)))
    if not usable:
        return None
    numbers, captions, images = zip(*usable, strict=True)
    embedded = encoder.source(variables, source, SkipLog(), numbers)
    texts = encoder.texts(variables, captions)
    return Gallery(np.stack(images), list(captions), embedded.outputs @ texts.T)


def thumbnail(data: bytes | np.ndarray) -> np.ndarray:
    """The whole image on a white square, uint8 [96, 96, 3]."""
    image = open_image(data)
    scale = _PIXELS / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    square = Image.new("RGB", (_PIXELS, _PIXELS), "white")
    square.paste(small, ((_PIXELS - size[0]) // 2, (_PIXELS - size[1]) // 2))
    return np.asarray(square)
