"""What a source of image-text records is, and how one is named in a config."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jaxclip.data.storage import resolve
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


def open_source(text: str | Sequence[tuple[str, float]], *, root: str = "") -> Source:
    """Opens the source that a config names.

    Args:
      text: one source, or several: a list of (source, weight), or as text `0.7 * A + 0.3 * B`, which gives each its
        part of the training examples; `A + B` has every record of both once in an epoch. A source is `shapes` or
        `shapes:SPLIT`; `tfds:NAME` or `tfds:NAME/CONFIG:VERSION`, either with `[SPLIT]` after it; `folder:PATH` or an
        existing folder; or files by their path, of which the suffix says the kind (tar, csv, tsv, parquet, tfrecord,
        array_record): one path, a glob, or a range `PATH/{00000..00099}.tar`, on a local disk or with the scheme of
        remote storage (`gs://`, `s3://`).
      root: the folder that relative paths start from and that TFDS data sets are looked for in first; by default the
        working directory and TFDS's own folder.

    Raises:
      UserError: the text has none of these forms, or what it names cannot be used.
    """
    from jaxclip.data.mixture import Mixture

    if not isinstance(text, str):
        if not text:
            raise UserError("an empty list names no data")
        return Mixture([_open_one(name, root) for name, _ in text], [weight for _, weight in text])
    terms = re.split(r"\s+\+\s+", text.strip())
    weighted = [match for match in map(_WEIGHTED.match, terms) if match]
    if weighted and len(weighted) < len(terms):
        raise UserError(f"{text!r}: give every source a weight, as in '0.7 * A + 0.3 * B', or none of them")
    if weighted:
        return open_source([(match[2], float(match[1])) for match in weighted], root=root)
    return _open_one(text, root) if len(terms) == 1 else Mixture([_open_one(term, root) for term in terms])


# The kind of a file by its name: x.tar, x.tfrecord, x.tfrecord-00000-of-00010, x.tfrecord-*.
_KIND = re.compile(r"\.(tar|csv|tsv|parquet|tfrecords?|array_?record)(-[\w.*?\[\]{}-]+)?$")
_WEIGHTED = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s+\*\s+(.+)", re.DOTALL)


def _open_one(text: str, root: str) -> Source:
    name, _, split = text.partition(":")
    if name == "shapes":
        from jaxclip.data.shapes import Shapes

        # Scenes to train on are drawn quickly; people look at the others.
        return Shapes(split, 128) if split else Shapes("train")
    if name == "tfds":
        from jaxclip.data.tfds import Tfds

        return Tfds(text, root=root)
    if name == "folder" and split:
        from jaxclip.data.folder import Folder

        return Folder(resolve(split, root))
    path = resolve(text, root)
    kind = _KIND.search(path.rpartition("/")[2].lower())
    match kind and kind[1]:
        case "tar":
            from jaxclip.data.tar import TarShards

            return TarShards(path)
        case "csv" | "tsv":
            from jaxclip.data.table import Table

            return Table(path)
        case "parquet":
            from jaxclip.data.parquet import Parquet

            return Parquet(path)
        case "tfrecord" | "tfrecords":
            from jaxclip.data.tfrecord import TfRecords

            return TfRecords(path)
        case "array_record" | "arrayrecord":
            from jaxclip.data.array_record import ArrayRecords

            return ArrayRecords(path)
    if text and pathlib.Path(path).is_dir():
        from jaxclip.data.folder import Folder

        return Folder(path)
    raise UserError(
        f"{text!r} names no data: write shapes, shapes:SPLIT, tfds:NAME, folder:PATH, or files by their path, such as "
        "PATH.tar, PATH/*.tar, PATH/{00000..00099}.tar, PATH/*.parquet, PATH/*.tfrecord, PATH/*.array_record, "
        "PATH.csv, PATH.tsv; sources are mixed as in '0.7 * A + 0.3 * B'"
    )
