"""Source that reads Parquet files of img2dataset and Hugging Face data sets by row group."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.data.index.parquet import LARGEST_GROUP, Columns, load_index, open_file
from jaxclip.data.record import LARGEST_CAPTION, LARGEST_IMAGE, Record, Skip, class_index, clean_captions
from jaxclip.data.storage import is_remote, list_files
from jaxclip.data.storage.chunk_cache import ChunkCache

_log = logging.getLogger(__name__)

_CACHE = 2 << 30  # bytes of decoded row groups, or the two largest groups if they are larger
_BATCH = 32  # rows decoded at a time


class Parquet:
    """The rows of Parquet files, in the order of the files and within each.

    The image is a column of bytes (`jpg`, `png`, `webp`, `image`, ...) or, in Hugging Face data sets, a struct with a
    field `bytes`. Captions are a column of strings or of lists of strings. The label is a column of integers; the file
    may contain the class names in the Hugging Face form. If there is no caption column, the class name is the caption.

    Rows without an image, such as failed downloads, are skipped.
    """

    def __init__(self, pattern: str):
        """Opens the files and reads the footer of each, which locates its row groups.

        Args:
          pattern: one path, a glob (`data/*.parquet`) or a numeric range (`data/{00000..00099}.parquet`), local or
            remote.

        Raises:
          UserError: a file is missing, cannot be read or is not a Parquet file; the files contain only image urls; the
            image column or both the caption and label columns are missing; there are no rows.
        """
        self._files = list_files(pattern)
        index = load_index(pattern, self._files)
        self._columns: Columns = index.columns
        self.class_names: Sequence[str] = index.columns.class_names
        # For each chunk: the file, the row group's number in it, and the group's first row in the file.
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
        # At least two: both are in use when the training order moves from one group to the next.
        self._groups: ChunkCache[_Group | None] = ChunkCache(max(_CACHE, 2 * largest))
        if largest > _CACHE:
            _log.warning(
                "%s: %d of %d row groups are larger than %d MiB (the largest has %d MiB), and two at a time are held "
                "in memory; write files with smaller row groups",
                *(pattern, np.sum(decoded > _CACHE), len(sizes), _CACHE >> 20, largest >> 20),
            )

    def __len__(self) -> int:
        return int(self.chunk_ends[-1])

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each that cannot be read or lacks a required field."""
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
        except (IndexError, OSError):  # fewer rows than the footer declares, or a temporary read error
            return Skip("unreadable shard", key)

    def _read_group(self, number: int, group: int) -> tuple[_Group | None, int]:
        """A row group and its size in bytes; None if it is damaged, so that the cache remembers that.

        Raises:
          OSError: the file cannot be read; the error may be temporary.
        """
        import pyarrow

        batches, size = [], 0
        try:
            with open_file(self._files[number].path) as file:
                # One thread, because other threads read other row groups. A few rows at a time, because equal cells are
                # stored once, and a row group in a file of a megabyte can decode to terabytes.
                for batch in file.iter_batches(
                    _BATCH, row_groups=[group], columns=self._columns.names, use_threads=False
                ):
                    batches.append(batch)
                    size += batch.nbytes
                    if size > LARGEST_GROUP:
                        return None, 0
            return _Group(pyarrow.Table.from_batches(batches), self._columns), size
        except OSError as error:
            # For a local file, pyarrow reports damaged content as an OSError without an errno.
            if error.errno is not None or is_remote(self._files[number].path):
                raise
            return None, 0
        except Exception:  # pyarrow and the storage libraries have no common exception class
            return None, 0


class _Group:
    """A decoded row group."""

    def __init__(self, table, columns: Columns):
        import pyarrow.compute

        image = table.column(columns.image)
        self._image = pyarrow.compute.struct_field(image, "bytes") if columns.structured else image
        self._caption = table.column(columns.caption) if columns.caption else None
        self._label = table.column(columns.label) if columns.label else None
        self._class_names = columns.class_names

    def record(self, row: int, key: str) -> Record | Skip:
        """The record in a row of the group."""
        image = self._image[row]
        size = image.as_buffer().size if image.is_valid else 0
        if not size:
            return Skip("no image", key)
        if size > LARGEST_IMAGE:
            return Skip("image file too large", key)
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
        return Record(image.as_buffer().to_pybytes(), captions, key, label)


def _texts(cell) -> list[Any]:
    """The buffers of the texts in a cell: a string, a list of strings or null."""
    if not cell.is_valid:
        return []
    texts = cell.values if hasattr(cell, "values") else [cell]
    return [text.as_buffer() for text in texts if text.is_valid]
