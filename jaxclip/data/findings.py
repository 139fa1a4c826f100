"""What a sample of a source's records turns out to be: read before training, and shown by `jaxclip.data.check`."""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np
from PIL import Image

from jaxclip.data.images.decode import MAX_PIXELS, Unreadable, open_picture
from jaxclip.data.mixture import spread
from jaxclip.data.record import Record, Skip, Source
from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError
from jaxclip.io import printable

_READ = 32  # records read at a time
_THUMBNAIL = 320  # pixels of a kept picture's longer side


@dataclasses.dataclass(frozen=True)
class Example:
    """A record that can be used.

    Attributes:
      key: its name in the source.
      picture: RGB, at most 320 pixels long.
      size: (width, height) of the whole picture.
      stored: bytes it takes in the source.
      captions: all of them.
    """

    key: str
    picture: Image.Image
    size: tuple[int, int]
    stored: int
    captions: tuple[str, ...]


@dataclasses.dataclass
class Findings:
    """A sample of a source.

    Attributes:
      records: in the whole source.
      looked_at: how many of them were read, spread evenly.
      examples: those that can be used, in the source's order.
      skips: the others by reason.
      at_fault: how many of the others each shard or file has.
    """

    records: int
    looked_at: int = 0
    examples: list[Example] = dataclasses.field(default_factory=list)
    skips: SkipLog = dataclasses.field(default_factory=SkipLog)
    at_fault: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def look_at(source: Source, sample: int, max_pixels: int = MAX_PIXELS) -> Findings:
    """Reads and decodes `sample` records spread evenly over a source; without a caption, one cannot be trained on."""
    findings = Findings(len(source))
    ids = spread(source, sample)
    for start in range(0, len(ids), _READ):
        for record in source.read(ids[start : start + _READ]):
            findings.looked_at += 1
            try:
                findings.examples.append(_example(record, max_pixels))
            except Unreadable as error:
                findings.skips.add(str(error), record.key)
                findings.at_fault[printable(record.key.partition(":")[0])] += 1
    return findings


def _example(record: Record | Skip, max_pixels: int) -> Example:
    if isinstance(record, Skip):
        raise Unreadable(record.reason)
    if not record.captions:
        raise Unreadable("no caption")
    picture = open_picture(record.image, max_pixels)
    size, stored = picture.size, record.image.nbytes if isinstance(record.image, np.ndarray) else len(record.image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return Example(record.key, picture, size, stored, record.captions)


def preflight(source: Source, name: str, max_pixels: int = MAX_PIXELS, max_skip_rate: float = 1.0) -> None:
    """Reads a few records, so that wrong data stops a run before it starts.

    Args:
      source: to be trained on.
      name: of the source's key, for the message.
      max_pixels: larger pictures cannot be used.
      max_skip_rate: the share of unusable records that is put up with.

    Raises:
      UserError: none of them can be used, or so few that the share in the whole source must be above the limit.
    """
    judge(look_at(source, 64, max_pixels), name, max_skip_rate)


def judge(findings: Findings, name: str, max_skip_rate: float) -> None:
    """Raises UserError as `preflight` does, of findings that are there."""
    looked_at, skipped = findings.looked_at, findings.skips.total
    if skipped == looked_at:
        raise UserError(f"{name}: none of {looked_at} sampled records can be used: {findings.skips}")
    # Three standard errors above what the limit would give: one in a thousand sources at the limit is refused.
    allowed = max_skip_rate * looked_at + 3 * math.sqrt(max_skip_rate * max(1 - max_skip_rate, 0) * looked_at)
    if skipped > allowed:
        raise UserError(
            f"{name}: {skipped} of {looked_at} sampled records cannot be used, more than "
            f"data.max_skip_rate={max_skip_rate} allows: {findings.skips}"
        )
