"""Parquet files as a source, as img2dataset and Hugging Face data sets write them: read by row group."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.data.index.parquet import LARGEST_GROUP, Columns, load_index, open_file
from jaxclip.data.record import LARGEST_CAPTION, LARGEST_PICTURE, Record, Skip, class_index, clean_captions
from jaxclip.data.storage import is_remote, list_files
from jaxclip.data.storage.chunk_cache import ChunkCache

_log = logging.getLogger(__name__)

_CACHE = 2 << 30  # bytes of decoded row groups, where the largest take less
_BATCH = 32  # rows decoded at a time


class Parquet:
    """The rows of Parquet files, in the order of the files and within each.

    The picture is a column of bytes (`jpg`, `png`, `webp`, `image` and the like) or, as Hugging Face data sets have it,
    a structure with the field `bytes`; the captions are a column of strings or of lists of strings; the label is a
    column of integers, whose class names the file may tell as Hugging Face data sets do. A label of a known class
    gives the caption where there is no column of captions.

    Rows whose picture could not be downloaded are there without one: they are skipped.
    """

    def __init__(self, pattern: str):
        """Opens the files, reading the end of each, which says where its row groups are.

        Args:
          pattern: one path, a glob (`data/*.parquet`) or a numeric range (`data/{00000..00099}.parquet`), local or
            remote.

        Raises:
          UserError: a file is missing, cannot be read or is not a Parquet file; there are only urls of pictures; a
            column for the picture, or one for captions or labels, is missing; there are no rows.
        """
        self._files = list_files(pattern)
        index = load_index(pattern, self._files)
        self._columns: Columns = index.columns
        self.class_names: Sequence[str] = index.columns.class_names
        # Of each chunk: its file, its number there, and the file's row that it begins with.
        self._places: list[tuple[int, int, int]] = []
        sizes: list[tuple[int, int]] = []
        for number, groups in enumerate(index.groups):
            first = 0
            for group, (rows, size) in enumerate(groups):
                if rows:
                    self._places.append((number, group, first))
                    sizes.append((rows, size))
                    first += rows
        self.chunk_ends = np.cumsum([rows for rows, _ in sizes])
        decoded = np.array([size for _, size in sizes])
        largest = int(decoded.max())
        # Two at least: where the training order goes from one group to the next, both are wanted.
        self._groups: ChunkCache[_Group | None] = ChunkCache(max(_CACHE, 2 * largest))
        if largest > _CACHE:
            _log.warning(
                "%s: %d of %d row groups are larger than %d MiB, the largest is %d MiB, and two at a time are held in "
                "memory whole: write files with smaller ones",
                *(pattern, np.sum(decoded > _CACHE), len(sizes), _CACHE >> 20, largest >> 20),
            )

    def __len__(self) -> int:
        return int(self.chunk_ends[-1])

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, in their order; a `Skip` where one cannot be read or lacks what is needed."""
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        chunk = int(np.searchsorted(self.chunk_ends, index, side="right"))
        number, group, first = self._places[chunk]
        row = index - (int(self.chunk_ends[chunk - 1]) if chunk else 0)
        key = f"{self._files[number].name}:{first + row}"
        try:
            columns = self._groups.get((number, group), lambda: self._read_group(number, group))
            if columns is None:
                return Skip("unreadable shard", key)
            return columns.record(row, key)
        except (IndexError, OSError):  # the file told more rows than there are; or it cannot be read at the moment
            return Skip("unreadable shard", key)

    def _read_group(self, number: int, group: int) -> tuple[_Group | None, int]:
        """A row group and its size in bytes; None where it is damaged, which is not found out for each of its rows.

        Raises:
          OSError: the file cannot be read, which may pass.
        """
        import pyarrow

        batches, size = [], 0
        try:
            with open_file(self._files[number].path) as file:
                # In this thread alone: others are reading other row groups. A few rows at a time: equal cells are
                # stored once, and a file of a megabyte can hold a row group of terabytes.
                for batch in file.iter_batches(
                    _BATCH, row_groups=[group], columns=self._columns.names, use_threads=False
                ):
                    batches.append(batch)
                    size += batch.nbytes
                    if size > LARGEST_GROUP:
                        return None, 0
            return _Group(pyarrow.Table.from_batches(batches), self._columns), size
        except OSError as error:
            # Of a local file an OSError without a number is pyarrow's word for damaged content.
            if error.errno is not None or is_remote(self._files[number].path):
                raise
            return None, 0
        except Exception:  # pyarrow's errors have no common class with those of each storage library
            return None, 0


class _Group:
    """A decoded row group."""

    def __init__(self, table, columns: Columns):
        import pyarrow.compute

        picture = table.column(columns.picture)
        self._picture = pyarrow.compute.struct_field(picture, "bytes") if columns.structured else picture
        self._caption = table.column(columns.caption) if columns.caption else None
        self._label = table.column(columns.label) if columns.label else None
        self._class_names = columns.class_names

    def record(self, row: int, key: str) -> Record | Skip:
        """The record in a row of the group."""
        picture = self._picture[row]
        size = picture.as_buffer().size if picture.is_valid else 0
        if not size:
            return Skip("no picture", key)
        if size > LARGEST_PICTURE:
            return Skip("picture file too large", key)
        texts = _texts(self._caption[row]) if self._caption is not None else []
        if sum(text.size for text in texts) > LARGEST_CAPTION:
            return Skip("caption too large", key)
        captions = clean_captions(text.to_pybytes() for text in texts)
        label = self._label[row].as_py() if self._label is not None else None
        label = class_index(label, self._class_names)
        if label is not None and self._class_names and self._caption is None:
            captions = (self._class_names[label],)
        if not captions and label is None:
            return Skip("no caption", key)
        return Record(picture.as_buffer().to_pybytes(), captions, key, label)


def _texts(cell) -> list[Any]:
    """The buffers of the texts in a cell, which is a string, a list of strings or null."""
    if not cell.is_valid:
        return []
    texts = cell.values if hasattr(cell, "values") else [cell]
    return [text.as_buffer() for text in texts if text.is_valid]
