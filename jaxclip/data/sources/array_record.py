"""ArrayRecord files of tf.train.Example as a source."""

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
_PROBES = 64  # examples looked into before files without a known feature are refused


class ArrayRecords:
    """The records of ArrayRecord files, in the order of the files and within each.

    The picture, captions and label are found by the features' names, see `example.Features`. Groups of several records
    are decompressed together, so they are read as chunks and kept while they are wanted.
    """

    class_names: Sequence[str] = ()

    def __init__(self, pattern: str):
        """Opens every file once, for its number of records and what it says of its groups.

        Args:
          pattern: one path, a glob (`data/*.array_record`) or a numeric range.

        Raises:
          UserError: a file is remote, missing, or no ArrayRecord file; together they hold no record, or no picture, or
            neither a caption nor a label; a file's groups are too large.
        """
        if is_remote(pattern):
            raise UserError(f"{pattern}: ArrayRecord files are read from local disks only: copy them to one")
        self._files = list_files(pattern)
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            found = list(pool.map(_facts, [file.path for file in self._files]))
        self._file_ends = np.cumsum([count for count, _ in found])
        self._group_sizes = [size for _, size in found]
        # Dropped readers close their files when nobody holds them any more.
        self._reader = functools.lru_cache(maxsize=_OPEN_FILES)(_open)
        self._groups: ChunkCache[list[bytes]] = ChunkCache(_CACHE)
        self._features = Features()
        if not len(self):
            raise UserError(f"{pattern} holds no records: choose other files")
        for file, (count, group_size) in zip(self._files, found, strict=True):
            # Compressed pictures hardly shrink any more, so a group takes its share of the file in memory.
            if group_size > 1 and file.size * min(group_size, count) > _LARGEST_GROUP * count:
                raise UserError(
                    f"{file.path} has groups of {group_size:,} records, more than {_LARGEST_GROUP >> 30} GiB each, "
                    "and they are held in memory: write it with group_size:1"
                )
        self._features.check(self._probes(), pattern)
        self.chunk_ends = self._chunk_ends() if max(self._group_sizes) > 1 else None

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, in their order; a `Skip` where one cannot be read or lacks what is needed."""
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        number, row = self._place(index)
        key = f"{self._files[number].name}:{row}"
        try:
            data = self._data(number, row)
        except Exception:  # array_record has no class of its own for what a damaged file makes it raise
            return Skip("unreadable record", key)
        return Skip("picture file too large", key) if len(data) > LARGEST_EXAMPLE else self._features.record(data, key)

    def _place(self, index: int) -> tuple[int, int]:
        """The file of a record and its row there."""
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
        """The data of a few records from all over the files; of damaged ones nothing."""
        for index in np.unique(np.linspace(0, len(self) - 1, num=_PROBES, dtype=np.int64)):
            try:
                yield self._data(*self._place(int(index)))
            except Exception:  # as in _record
                yield b""

    def _chunk_ends(self) -> np.ndarray:
        """As `Source.chunk_ends`: the groups; files without groups are chunks as a whole."""
        ends, start = [], 0
        for end, size in zip(self._file_ends.tolist(), self._group_sizes, strict=True):
            ends += [*range(start + size, end, size)] if size > 1 else []
            ends += [end] if end > start else []
            start = end
        return np.array(ends, np.int64)


def _open(path: str):
    from array_record.python import array_record_module

    # Nothing is read ahead, for the next record is somewhere else.
    return array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=1 << 15
    )


def _facts(path: str) -> tuple[int, int]:
    """How many records a file has, and how many are in a group.

    Raises:
      UserError: it is no ArrayRecord file.
    """
    try:
        reader = _open(path)
        count, options = reader.num_records(), reader.writer_options_string()
        reader.close()
    except Exception as error:  # as above
        reason = str(error).partition("\n")[0].partition(" (")[0].partition("; ")[0]
        raise UserError(f"{path} cannot be read as an ArrayRecord file: {reason}") from error
    # Files written before October 2022 do not say it; then each record counts as a group.
    size = re.search(r"group_size:(\d+)", options)
    return count, max(1, int(size[1])) if size else 1
