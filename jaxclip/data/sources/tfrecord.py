"""Source that reads tf.train.Example records from TFRecord files through an index, without TensorFlow."""

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

# Bytes of a chunk of a remote file. Blocks begin and end within records, so up to one block per chunk is fetched in
# vain.
_CHUNK = 4 * REMOTE_BLOCK
_PROBES = 64  # examples checked for known features before files are rejected


class TfRecords:
    """The records of TFRecord files, in the order of the files and within each.

    The image, captions and label are identified by feature name, see `tf_example.Features`. The header checksums are
    verified while indexing. The data checksums are not: computing them with NumPy takes longer than decoding the image,
    and decoding detects a damaged image.

    Of damaged or truncated files, the complete records before the flaw are used, and a warning is logged for each file.
    """

    class_names: Sequence[str] = ()

    def __init__(self, pattern: str):
        """Opens the files, indexing them if there is no valid index yet.

        Args:
          pattern: one path, a glob (`data/*.tfrecord`) or a numeric range (`data/{00000..00099}.tfrecord`), local or
            remote.

        Raises:
          UserError: a file is missing, cannot be read, is compressed or is not a TFRecord file; the files contain no
            records, no images, or neither captions nor labels.
        """
        self._files = Files(list_files(pattern))
        self._index = load_index(self._files)
        self._file_ends = np.cumsum(self._index.counts)
        self._features = Features()
        for number, file in enumerate(self._files):
            if flaw := self._index.flaw(number):
                count = self._index.counts[number]
                _log.warning("%s %s: only the %d complete records before that are used", file.path, flaw, count)
        if not len(self):
            raise UserError(f"{pattern} contains no records; check the path")
        self._features.check(self._probes(pattern), pattern)
        self.chunk_ends = self._chunk_ends() if any(is_remote(file.path) for file in self._files) else None

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each that cannot be read or lacks a required field."""
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        number, row, start, size = self._place(index)
        key = f"{self._files[number].name}:{row}"
        if size > LARGEST_EXAMPLE:
            return Skip("image file too large", key)
        try:
            data = self._files.read(number, start, size)
        except OSError:
            return Skip("unreadable shard", key)
        return self._features.record(data, key)

    def _place(self, index: int) -> tuple[int, int, int, int]:
        """The number of a record's file, its row in the file, and the start and size of its data."""
        number = int(np.searchsorted(self._file_ends, index, side="right"))
        row = index - int(self._file_ends[number] - self._index.counts[number])
        start, end = self._index.extent(index, row)
        return number, row, start + HEADER, end - start - HEADER - FOOTER

    def _probes(self, pattern: str) -> Iterator[bytes]:
        """The data of a few records spread over the files."""
        for index in np.unique(np.linspace(0, len(self) - 1, num=_PROBES, dtype=np.int64)):
            number, _, start, size = self._place(int(index))
            if size <= LARGEST_EXAMPLE:
                try:
                    yield self._files.read(number, start, size)
                except OSError as error:
                    raise UserError(f"{self._files[number].path} (of {pattern}) cannot be read: {error}") from error

    def _chunk_ends(self) -> np.ndarray:
        """As `Source.chunk_ends`: the records that start in the same part of a file form a chunk."""
        ends = []
        for first, count in zip(self._file_ends - self._index.counts, self._index.counts, strict=True):
            starts = np.concatenate([[0], self._index.ends(int(first), int(count))])[:count]
            last = np.flatnonzero(np.diff(starts // _CHUNK, append=-1))
            ends.append(first + 1 + last)
        return np.concatenate(ends).astype(np.int64)
