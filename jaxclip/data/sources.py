"""What a source of image-text records is, and how one is named in a config."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jaxclip.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One picture with its captions, as stored: nothing is decoded yet.

    Attributes:
      image: the encoded picture (JPEG, PNG, WebP, ...), or uint8 RGB pixels of shape [height, width, 3].
      captions: one or more captions that are all true of the picture; empty for pictures with a label only.
      key: a stable name within the source, for messages ("train-00003.tar:noto_1f4be").
      label: the index of the picture's class where the source knows one.
    """

    image: bytes | np.ndarray
    captions: tuple[str, ...]
    key: str
    label: int | None = None


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


def resolve(path: str, root: str) -> pathlib.Path:
    """A path of a config: relative ones start from `root`, or from the working directory where that is empty."""
    return pathlib.Path(root).expanduser() / pathlib.Path(path).expanduser()


def open_source(text: str, *, root: str = "") -> Source:
    """Opens the source that a config names.

    Args:
      text: `shapes` or `shapes:SPLIT`; `tfds:NAME` or `tfds:NAME/CONFIG:VERSION`, either with `[SPLIT]` after it; the
        path of a .tar, a glob of them, or a range `PATH/{00000..00099}.tar`; the path of a .csv or .tsv.
      root: the folder that relative paths start from and that TFDS data sets are looked for in first; by default the
        working directory and TFDS's own folder.

    Raises:
      UserError: the text has none of these forms, or what it names cannot be used.
    """
    name, _, split = text.partition(":")
    if name == "shapes":
        from jaxclip.data.shapes import Shapes

        # Scenes to train on are drawn quickly; people look at the others.
        return Shapes(split, 128) if split else Shapes("train")
    if name == "tfds":
        from jaxclip.data.tfds import Tfds

        return Tfds(text, root=root)
    path = str(resolve(text, root))
    suffix = pathlib.Path(text).suffix.lower()
    if suffix == ".tar":
        from jaxclip.data.tar import TarShards

        return TarShards(path)
    if suffix in (".csv", ".tsv"):
        from jaxclip.data.table import Table

        return Table(path)
    raise UserError(
        f"{text!r} names no data: write shapes, shapes:SPLIT, tfds:NAME, PATH.tar, PATH/*.tar, "
        "PATH/{00000..00099}.tar, PATH.csv or PATH.tsv"
    )
