"""TFRecord files of tf.train.Example as a source: indexed once, read by position, without TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from jaxclip.data.index.tfrecord import FOOTER, HEADER, load_index
from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.tf_example import LARGEST_EXAMPLE, Features
from jaxclip.data.storage import REMOTE_BLOCK, Files, is_remote, list_files
from jaxclip.errors import UserError

_log = logging.getLogger(__name__)

# Records of remote files are best read so many bytes at a time. The blocks that are fetched for them begin and end
# within records, so of each chunk up to one block is fetched in vain.
_CHUNK = 4 * REMOTE_BLOCK
_PROBES = 64  # examples looked into before files without a known feature are refused


class TfRecords:
    """The records of TFRecord files, in the order of the files and within each.

    The picture, captions and label are found by the features' names, see `example.Features`. The checksums of headers
    are verified while indexing. Those of the data are not: numpy takes longer over them than a picture takes to be
    decoded, and a damaged picture shows when it is.

    Files that are damaged or cut give the whole records before the flaw; that is logged as a warning, a line for each.
    """

    class_names: Sequence[str] = ()

    def __init__(self, pattern: str):
        """Opens the files, indexing them where there is no valid index yet.

        Args:
          pattern: one path, a glob (`data/*.tfrecord`) or a numeric range (`data/{00000..00099}.tfrecord`), local or
            remote.

        Raises:
          UserError: a file is missing, cannot be read, is compressed or is not a TFRecord file; together they hold no
            record, or no picture, or neither a caption nor a label.
        """
        self._files = Files(list_files(pattern))
        self._index = load_index(self._files)
        self._file_ends = np.cumsum(self._index.counts)
        self._features = Features()
        for number, file in enumerate(self._files):
            if flaw := self._index.flaw(number):
                count = self._index.counts[number]
                _log.warning("%s %s: only the %d whole records before are used", file.path, flaw, count)
        if not len(self):
            raise UserError(f"{pattern} holds no records: choose other files")
        self._features.check(self._probes(pattern), pattern)
        self.chunk_ends = self._chunk_ends() if any(is_remote(file.path) for file in self._files) else None

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, in their order; a `Skip` where one cannot be read or lacks what is needed."""
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        number, row, start, size = self._place(index)
        key = f"{self._files[number].name}:{row}"
        if size > LARGEST_EXAMPLE:
            return Skip("picture file too large", key)
        try:
            data = self._files.read(number, start, size)
        except OSError:
            return Skip("unreadable shard", key)
        return self._features.record(data, key)

    def _place(self, index: int) -> tuple[int, int, int, int]:
        """The file of a record, its row there, and the start and size of its data."""
        number = int(np.searchsorted(self._file_ends, index, side="right"))
        row = index - int(self._file_ends[number] - self._index.counts[number])
        start = int(self._index.ends[index - 1]) if row else 0
        return number, row, start + HEADER, int(self._index.ends[index]) - start - HEADER - FOOTER

    def _probes(self, pattern: str) -> Iterator[bytes]:
        """The data of a few records from all over the files."""
        for index in np.unique(np.linspace(0, len(self) - 1, num=_PROBES, dtype=np.int64)):
            number, _, start, size = self._place(int(index))
            if size <= LARGEST_EXAMPLE:
                try:
                    yield self._files.read(number, start, size)
                except OSError as error:
                    raise UserError(f"{self._files[number].path} of {pattern} cannot be read: {error}") from error

    def _chunk_ends(self) -> np.ndarray:
        """As `Source.chunk_ends`: the records that start in the same part of a file are a chunk."""
        ends = []
        for first, count in zip(self._file_ends - self._index.counts, self._index.counts, strict=True):
            starts = np.concatenate([[0], self._index.ends[first : first + count]])[:count]
            last = np.flatnonzero(np.diff(starts // _CHUNK, append=-1))
            ends.append(first + 1 + last)
        return np.concatenate(ends).astype(np.int64)
