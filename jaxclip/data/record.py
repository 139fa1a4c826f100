"""Records of image-text data, the protocol of their sources, and the limits and normalization of their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

# In bytes. No picture or caption to train on comes near these; one that does is damaged, or means harm.
LARGEST_PICTURE = 256 << 20
LARGEST_CAPTION = 16 << 20

_LARGEST_LABEL = 999_999_999


@dataclasses.dataclass(frozen=True)
class Record:
    """One picture with its captions, as stored: nothing is decoded yet.

    Attributes:
      image: the encoded picture (JPEG, PNG, WebP, ...), or uint8 RGB pixels of shape [height, width, 3].
      captions: one or more captions that are all true of the picture; empty for pictures with a label only.
      key: a stable name within the source, for messages ("train-00003.tar:noto_1f4be").
      label: the index of the image's class, if the source knows one.
      more_images: further images of the same record, as `image`.
      question: about the image; empty if there is none.
      answers: to the question, each with its weight.
      tags: indices of the tags that hold of the image; None if the source has no tags.
    """

    image: bytes | np.ndarray
    captions: tuple[str, ...]
    key: str
    label: int | None = None
    more_images: tuple[bytes | np.ndarray, ...] = ()
    question: str = ""
    answers: tuple[tuple[str, float], ...] = ()
    tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Skip:
    """What a source returns in the place of a record that cannot be read.

    Attributes:
      reason: a short class of failure to count by ("no caption", "unreadable picture").
      key: which record it was.
    """

    reason: str
    key: str


@runtime_checkable
class Source(Protocol):
    """Random access to records by id, 0 <= id < len(source).

    `read` never raises for a bad record: it returns a `Skip` in its place. It may be called from several
    threads at once.

    Attributes:
      class_names: what the records' labels index; empty where the source does not know.
      chunk_ends: int64 [chunks], growing, the last one the source's length: records between two of these numbers are
        best read together, because they lie in one compressed block or in one request to remote storage. None where
        any record is read alone at the same cost.
    """

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def chunk_ends(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def read(self, ids: Sequence[int]) -> list[Record | Skip]: ...


def clean_captions(texts: Iterable[bytes]) -> tuple[str, ...]:
    """The captions in UTF-8 texts: stripped, without the empty ones; bytes in no encoding become U+FFFD."""
    stripped = (text.decode("utf-8", errors="replace").strip() for text in texts)
    return tuple(text for text in stripped if text)


def class_index(label: int | None, class_names: Sequence[str]) -> int | None:
    """A label that can be one; else None, as for the negative ones that stand for a class that is not told."""
    most = len(class_names) - 1 if class_names else _LARGEST_LABEL
    return label if label is not None and 0 <= label <= most else None
