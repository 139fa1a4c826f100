"""Statistics of a sample of records, used before training and by `jaxclip.data.check`."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from jaxclip.data.images.decode import MAX_PIXELS, Unreadable, open_image
from jaxclip.data.mixture import spread
from jaxclip.data.record import Question, Record, Skip, Source, image_digest
from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError
from jaxclip.io import printable

_READ = 32  # records read at a time
THUMBNAIL = 320  # pixels of a thumbnail's longer side
_DARK = 20  # of 255; values of 12 bits in an image of 16 bits are at most 16, and resizing overshoots a little


@dataclasses.dataclass(frozen=True)
class Example:
    """A usable record.

    Attributes:
      key: its name in the source.
      image: an RGB thumbnail, at most 320 pixels long.
      size: (width, height) of the whole image.
      stored: the size of the stored image in bytes.
      captions: all captions.
      questions: all questions.
      digest: of the whole image: equal ones show the same.
    """

    key: str
    image: Image.Image
    size: tuple[int, int]
    stored: int
    captions: tuple[str, ...]
    questions: tuple[Question, ...]
    digest: str

    @property
    def text(self) -> str:
        """The first caption, or the first question of an image without captions."""
        return self.captions[0] if self.captions else self.questions[0].text


@dataclasses.dataclass
class Findings:
    """Statistics of a sample of a source.

    Attributes:
      records: the number of records in the whole source.
      class_names: the names that the labels of questions index; empty if unknown.
      looked_at: the number of records read, spread evenly over the source.
      examples: the usable records, in the source's order.
      skips: the unusable records by reason.
      at_fault: the number of unusable records by shard or file.
    """

    records: int
    class_names: Sequence[str] = ()
    looked_at: int = 0
    examples: list[Example] = dataclasses.field(default_factory=list)
    skips: SkipLog = dataclasses.field(default_factory=SkipLog)
    at_fault: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def name_of(self, label: int) -> str:
        """The name of a label; the label itself if it has none."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)

    @property
    def repeated_images(self) -> int:
        """How many different images of the sample several records show."""
        return _repeated(example.digest for example in self.examples)

    @property
    def repeated_captions(self) -> int:
        """How many different captions of the sample several records have."""
        return _repeated(caption for example in self.examples for caption in set(example.captions))

    @property
    def replaced_captions(self) -> int:
        """How many captions of the sample have a U+FFFD, as which bytes that are not UTF-8 are read."""
        return sum("\ufffd" in caption for example in self.examples for caption in example.captions)

    @property
    def dark_images(self) -> int:
        """How many images of the sample are almost black, as values of 12 bits in an image of 16 bits are."""
        return sum(int(np.asarray(example.image).max()) < _DARK for example in self.examples)


def no_caption(record: Record) -> str:
    """Why a record cannot be trained on, besides its image."""
    return "" if record.captions or record.questions else "no caption"


def look_at(
    source: Source, sample: int, max_pixels: int = MAX_PIXELS, lacks: Callable[[Record], str] = no_caption
) -> Findings:
    """Reads and decodes `sample` records spread evenly over a source.

    Args:
      source: the source.
      sample: how many.
      max_pixels: larger images are unusable.
      lacks: why a record with a readable image is unusable; empty if it is not.
    """
    findings = Findings(len(source), source.class_names)
    ids = spread(source, sample)
    for start in range(0, len(ids), _READ):
        for record in source.read(ids[start : start + _READ]):
            findings.looked_at += 1
            try:
                findings.examples.append(_example(record, max_pixels, lacks))
            except Unreadable as error:
                findings.skips.add(str(error), record.key)
                findings.at_fault[printable(record.key.partition(":")[0])] += 1
    return findings


def _example(record: Record | Skip, max_pixels: int, lacks: Callable[[Record], str]) -> Example:
    if isinstance(record, Skip):
        raise Unreadable(record.reason)
    image = open_image(record.image, max_pixels)
    if reason := lacks(record):
        raise Unreadable(reason)
    size, stored = image.size, record.image.nbytes if isinstance(record.image, np.ndarray) else len(record.image)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    digest = image_digest(record.image)
    return Example(
        key=record.key,
        image=image,
        size=size,
        stored=stored,
        captions=record.captions,
        questions=record.questions,
        digest=digest,
    )


def _repeated(values: Iterable[str]) -> int:
    return sum(number > 1 for number in collections.Counter(values).values())


def preflight(
    source: Source,
    name: str,
    lacks: Callable[[Record], str] = no_caption,
    max_pixels: int = MAX_PIXELS,
    max_skip_rate: float = 1.0,
) -> Findings:
    """Checks a few records before a run starts, and returns what it found.

    Args:
      source: the data.
      name: the source's config key, for the message.
      lacks: as in `look_at`.
      max_pixels: larger images are unusable.
      max_skip_rate: maximum fraction of unusable records.

    Raises:
      UserError: no record of the sample is usable, or the fraction of unusable ones in the source must exceed the
        limit.
    """
    try:
        found = look_at(source, 64, max_pixels, lacks)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    judge(found, name, max_skip_rate)
    return found


def judge(findings: Findings, name: str, max_skip_rate: float) -> None:
    """Raises UserError as `preflight` does, for existing findings."""
    looked_at, skipped = findings.looked_at, findings.skips.total
    if skipped == looked_at:
        raise UserError(f"{name}: none of {looked_at} sampled records can be used: {findings.skips}")
    # Three standard errors above the limit: one in a thousand sources that are exactly at the limit is rejected.
    allowed = max_skip_rate * looked_at + 3 * math.sqrt(max_skip_rate * max(1 - max_skip_rate, 0) * looked_at)
    if skipped > allowed:
        raise UserError(
            f"{name}: {skipped} of {looked_at} sampled records cannot be used, more than "
            f"data.max_skip_rate={max_skip_rate} allows: {findings.skips}"
        )
