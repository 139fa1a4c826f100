"""Pictures, captions and their similarities for the report."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from PIL import Image

from jaxclip.data.images.decode import Unreadable, open_image
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.report import Gallery

_PICTURES = 200
_PIXELS = 96


def gallery(encoder: Encoder, params: Any, source: Source) -> Gallery | None:
    """Up to 200 pictures spread over a source with their first captions; None where none of them can be used.

    Every process has to take part: the towers run on all devices.
    """
    ids = np.unique(np.linspace(0, len(source) - 1, _PICTURES).astype(int)).tolist()
    usable: list[tuple[int, str, np.ndarray]] = []
    for number, record in zip(ids, source.read(ids), strict=True):
        if isinstance(record, Record) and record.captions:
            with contextlib.suppress(Unreadable):
                usable.append((number, record.captions[0], thumbnail(record.image)))
    if not usable:
        return None
    numbers, captions, pictures = zip(*usable, strict=True)
    embedded = encoder.source(params, source, SkipLog(), numbers)
    texts = encoder.texts(params, captions)
    return Gallery(np.stack(pictures), list(captions), embedded.images @ texts.T)


def thumbnail(data: bytes | np.ndarray) -> np.ndarray:
    """The whole picture on a white square, uint8 [96, 96, 3]."""
    picture = open_image(data)
    scale = _PIXELS / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    small = picture.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    square = Image.new("RGB", (_PIXELS, _PIXELS), "white")
    square.paste(small, ((_PIXELS - size[0]) // 2, (_PIXELS - size[1]) // 2))
    return np.asarray(square)
