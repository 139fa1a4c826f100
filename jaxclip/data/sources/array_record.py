"""Source that reads tf.train.Example records from ArrayRecord files."""

from __future__ import annotations

import concurrent.futures
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.tf_example import LARGEST_EXAMPLE, Features
from jaxclip.data.storage import is_remote, list_files
from jaxclip.data.storage.chunk_cache import ChunkCache
from jaxclip.errors import UserError

_OPEN_FILES = 128  # kept open between reads; the usual limit for a process is 1024
_LARGEST_GROUP = 8 << 30  # bytes
_CACHE = 2 << 30  # bytes of decompressed groups
_PROBES = 64  # examples checked for known features before files are rejected


class ArrayRecords:
    """The records of ArrayRecord files, in the order of the files and within each.

    The image, captions and label are identified by feature name, see `tf_example.Features`. A group of several records
    is decompressed as a whole, so groups are the chunks of the source and are cached.
    """

    class_names: Sequence[str] = ()

    def __init__(self, pattern: str):
        """Opens every file once to read its number of records and its group size.

        Args:
          pattern: one path, a glob (`data/*.array_record`) or a numeric range.

        Raises:
          UserError: a file is remote, missing or not an ArrayRecord file; the files contain no records, no images, or
            neither captions nor labels; a file's groups are too large.
        """
        if is_remote(pattern):
            raise UserError(f"{pattern}: ArrayRecord files can be read only from a local disk; copy them to one")
        self._files = list_files(pattern)
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            facts = list(pool.map(_facts, [file.path for file in self._files]))
        self._file_ends = np.cumsum([count for count, _ in facts])
        self._group_sizes = [size for _, size in facts]
        # An evicted reader closes its file with its last reference.
        self._reader = functools.lru_cache(maxsize=_OPEN_FILES)(_open)
        self._groups: ChunkCache[list[bytes]] = ChunkCache(_CACHE)
        self._features = Features()
        if not len(self):
            raise UserError(f"{pattern} contains no records; check the path")
        for file, (count, group_size) in zip(self._files, facts, strict=True):
            # Images are compressed already, so a group's size in memory is about its share of the file.
            if group_size > 1 and file.size * min(group_size, count) > _LARGEST_GROUP * count:
                raise UserError(
                    f"{file.path} has groups of {group_size:,} records, more than {_LARGEST_GROUP >> 30} GiB each, "
                    "which do not fit in memory; write it with group_size:1"
                )
        self._features.check(self._probes(), pattern)
        self.chunk_ends = self._chunk_ends() if max(self._group_sizes) > 1 else None

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each that cannot be read or lacks a required field."""
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        number, row = self._place(index)
        key = f"{self._files[number].name}:{row}"
        try:
            data = self._data(number, row)
        except Exception:  # array_record has no exception class of its own for damaged files
            return Skip("unreadable record", key)
        return Skip("image file too large", key) if len(data) > LARGEST_EXAMPLE else self._features.record(data, key)

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a record's file and its row in that file."""
        number = int(np.searchsorted(self._file_ends, index, side="right"))
        return number, index - (int(self._file_ends[number - 1]) if number else 0)

    def _data(self, number: int, row: int) -> bytes:
        reader, size = self._reader(self._files[number].path), self._group_sizes[number]
        if size == 1:
            return reader.read([row])[0]

        def read() -> tuple[list[bytes], int]:
            first = row - row % size
            group = reader.read(first, min(first + size, reader.num_records()))
            return group, sum(map(len, group))

        return self._groups.get((number, row // size), read)[row % size]

    def _probes(self) -> Iterator[bytes]:
        """The data of a few records spread over the files; empty for damaged ones."""
        for index in np.unique(np.linspace(0, len(self) - 1, num=_PROBES, dtype=np.int64)):
            try:
                yield self._data(*self._place(int(index)))
            except Exception:  # as in _record
                yield b""

    def _chunk_ends(self) -> np.ndarray:
        """As `Source.chunk_ends`: each group is a chunk, and so is each file without groups."""
        ends, start = [], 0
        for end, size in zip(self._file_ends.tolist(), self._group_sizes, strict=True):
            ends += [*range(start + size, end, size)] if size > 1 else []
            ends += [end] if end > start else []
            start = end
        return np.array(ends, np.int64)


def _open(path: str):
    from array_record.python import array_record_module

    # No read-ahead, because access is random.
    return array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=1 << 15
    )


def _facts(path: str) -> tuple[int, int]:
    """The number of records in a file, and the number in a group.

    Raises:
      UserError: the file is not an ArrayRecord file.
    """
    try:
        reader = _open(path)
        count, options = reader.num_records(), reader.writer_options_string()
        reader.close()
    except Exception as error:  # as above
        reason = str(error).partition("\n")[0].partition(" (")[0].partition("; ")[0]
        raise UserError(f"{path} cannot be read as an ArrayRecord file: {reason}") from error
    # Files written before October 2022 do not store the group size; each record then counts as a group.
    size = re.search(r"group_size:(\d+)", options)
    return count, max(1, int(size[1])) if size else 1
