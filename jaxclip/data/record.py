"""Image-text records, the protocol of their sources, and limits and normalization of their fields."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

# In bytes. No usable image or caption comes near these limits; a larger one is damaged or malicious.
LARGEST_IMAGE = 256 << 20
LARGEST_CAPTION = 16 << 20

_LARGEST_LABEL = 999_999_999


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question about an image, or a sentence about it with a label: a hypothesis, a statement.

    Attributes:
      text: the question or the sentence.
      answers: to the question, each with its weight; empty if there are none.
      label: the class index of the sentence, among the source's `class_names`; None if it has none.
    """

    text: str
    answers: tuple[tuple[str, float], ...] = ()
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions and questions, as stored. Nothing is decoded yet.

    Attributes:
      image: the encoded image (JPEG, PNG, WebP, ...), or uint8 RGB pixels of shape [height, width, 3].
      captions: the captions of the image; empty if it has only a label.
      key: a stable name within the source, for messages ("train-00003.tar:noto_1f4be").
      label: the index of the image's class; None if unknown.
      more_images: further images of the same record, as `image`.
      questions: about the image, and sentences about it; empty if there are none.
      tags: indices of the tags that hold of the image; None if the source has no tags.
    """

    image: bytes | np.ndarray
    captions: tuple[str, ...]
    key: str
    label: int | None = None
    more_images: tuple[bytes | np.ndarray, ...] = ()
    questions: tuple[Question, ...] = ()
    tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Skip:
    """Returned by a source in place of a record that cannot be used.

    Attributes:
      reason: a short kind of failure, by which skips are counted ("no caption", "unreadable file").
      key: the record's key.
    """

    reason: str
    key: str


@runtime_checkable
class Source(Protocol):
    """Random access to records by id, 0 <= id < len(source).

    `read` never raises for a bad record; it returns a `Skip` instead. It may be called from several threads at once.

    Attributes:
      class_names: the names that labels, of records or of their questions, and tags index; empty if unknown.
      chunk_ends: int64 [chunks], increasing; the last is the source's length. Records between two of these ids should
        be read together, because they lie in one compressed block or in one request to remote storage. None if a
        record costs the same when read alone.
    """

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def chunk_ends(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def read(self, ids: Sequence[int]) -> list[Record | Skip]: ...


def clean_captions(texts: Iterable[bytes]) -> tuple[str, ...]:
    """Decodes captions from UTF-8, strips them and drops empty ones. Invalid bytes become U+FFFD."""
    stripped = (text.decode("utf-8", errors="replace").strip() for text in texts)
    return tuple(text for text in stripped if text)


def caption_lines(captions: Iterable[str]) -> list[str]:
    """The captions for an evaluation, in which each line is one.

    CLIP_benchmark and others write several captions of an image as the lines of one text.

    >>> caption_lines(["a dog\\nan animal\\n", "a pet"])
    ['a dog', 'an animal', 'a pet']
    """
    return [line.strip() for caption in captions for line in caption.splitlines() if line.strip()]


def image_digest(image: bytes | np.ndarray) -> str:
    """What two images have in common only if their content is the same."""
    content = image if isinstance(image, bytes) else str(image.shape).encode() + image.tobytes()
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def class_index(label: int | None, class_names: Sequence[str]) -> int | None:
    """The label if it is a valid class index, else None. Negative labels often stand for an unknown class."""
    most = len(class_names) - 1 if class_names else _LARGEST_LABEL
    return label if label is not None and 0 <= label <= most else None
