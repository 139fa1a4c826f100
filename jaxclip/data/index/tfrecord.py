"""Index of the ends of records in TFRecord files, built once from their headers and kept in a cache folder."""

from __future__ import annotations

import concurrent.futures
import io
import pathlib
import shutil
import struct
import sys
from collections.abc import Iterable, Sequence

import numpy as np
import tqdm

from jaxclip.data.index.checked import Content, InMemory, Writer, open_checked
from jaxclip.data.index.keep import keep
from jaxclip.data.storage import REMOTE_BLOCK, Files, cache_folder, fingerprint, is_remote
from jaxclip.errors import UserError

HEADER = 12  # a record: its length in 8 bytes, the length's checksum in 4, the data, the data's checksum in 4
FOOTER = 4

# Flaws of a file other than the position of a damaged header.
_SOUND, _CUT = -1, -2

_PAGE = 4096  # bytes read with a header; may include small records, and is a disk's smallest read
_CHECKED_AT_ONCE = 4096  # headers

_MAGIC = b"jaxclip TFRecord index 2\n"  # a kept index with another number is built again
_TWO = struct.Struct("<2q")


class TfRecordIndex:
    """Ends of the records of all files in order, read from the content that `_write` wrote.

    Attributes:
      counts: int64 [files], the number of records in each file.
      flaws: int64 [files], -1 for an intact file, -2 for a truncated one, otherwise the offset of a damaged header.
    """

    def __init__(self, content: Content, files: int):
        """Takes the content and the number of files; raises ValueError if the content is no index of so many."""
        self._content, self._start = content, len(_MAGIC) + 16 * files
        if content.size < self._start or content.read(0, len(_MAGIC)) != _MAGIC:
            raise ValueError("no index of so many files")
        table = np.frombuffer(content.read(len(_MAGIC), 16 * files), "<i8").reshape(2, files)
        self.counts, self.flaws = table
        if np.any(self.counts < 0) or content.size != self._start + 8 * int(self.counts.sum()):
            raise ValueError("no index of so many files")

    @staticmethod
    def open(place: pathlib.Path, files: int, *, whole: bool = False) -> TfRecordIndex | None:
        """The index in a file; None if it is missing, damaged, or not of so many files; `whole` as in `CheckedFile`."""
        return open_checked(place, lambda content: TfRecordIndex(content, files), whole=whole)

    def extent(self, record: int, row: int) -> tuple[int, int]:
        """The offsets in its file at which a record, the `row`-th of the file, starts and ends; raises as `ends`."""
        if row:
            return _TWO.unpack(self._content.read(self._start + 8 * (record - 1), 16))
        return 0, int(self.ends(record, 1)[0])

    def ends(self, first: int, count: int) -> np.ndarray:
        """int64 [count]: the offset in its file at which each record ends and the next one starts.

        Args:
          first: the number of the first record.
          count: the number of records.

        Raises:
          UserError: the kept index is damaged.
        """
        return np.frombuffer(self._content.read(self._start + 8 * first, 8 * count), "<i8")

    def flaw(self, number: int) -> str:
        """The flaw of a file, as text that follows its path in a message; empty for an intact file."""
        flaw = int(self.flaws[number])
        if flaw >= 0:
            return f"has a damaged header at byte {flaw}"
        return "is cut short" if flaw == _CUT else ""


def load_index(files: Files) -> TfRecordIndex:
    """The index of files: from the cache if they are unchanged, otherwise built and added to the cache.

    Several threads build it. Finished files are kept one by one, so that an interruption loses little.

    Raises:
      UserError: a file cannot be read or is not a TFRecord file.
    """
    folder = cache_folder("tfrecord-index")
    place = folder / f"{fingerprint(files)}.index"
    index = TfRecordIndex.open(place, len(files))
    return _build(files, place) if index is None else index


def _build(files: Files, place: pathlib.Path) -> TfRecordIndex:
    """Indexes every file, and combines the parts in `place`, or in memory if it cannot be written."""
    parts = place.with_suffix(".parts")
    unkept: dict[int, np.ndarray] = {}

    def part(number: int) -> np.ndarray:
        if number in unkept:
            return unkept[number]
        kept = parts / f"{fingerprint([files[number]])}.index"
        index = TfRecordIndex.open(kept, 1, whole=True)
        if index is not None:
            return np.concatenate([index.flaws, index.ends(0, int(index.counts[0]))])
        found = scan(files, number)
        if not keep(kept, lambda file: _write(file, [_summary(found)], [found])):
            unkept[number] = found
        return found

    remote = any(is_remote(file.path) for file in files)
    with (
        concurrent.futures.ThreadPoolExecutor(max_workers=32 if remote else 8) as pool,
        tqdm.tqdm(
            total=sum(file.size for file in files),
            desc="indexing TFRecord files",
            unit="B",
            unit_scale=True,
            delay=2,
            file=sys.stderr,
        ) as bar,
    ):
        running = {pool.submit(lambda number: _summary(part(number)), number): number for number in range(len(files))}
        try:
            for done in concurrent.futures.as_completed(running):
                done.result()
                bar.update(files[running[done]].size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    summaries = [future.result() for future in running]

    def fill(file: Writer) -> None:
        _write(file, summaries, map(part, range(len(files))))

    index = TfRecordIndex.open(place, len(files))  # if another process has finished first and removed the parts
    try:
        if index is None and keep(place, fill):
            index = TfRecordIndex.open(place, len(files))
        if index is None:
            memory = io.BytesIO()
            fill(Writer(memory))
            return TfRecordIndex(InMemory(memory.getvalue()), len(files))
    except ValueError as error:
        raise UserError(f"{files[0].path} and those after it changed while they were indexed: {error}") from error
    shutil.rmtree(parts, ignore_errors=True)
    return index


def _summary(found: np.ndarray) -> tuple[int, int]:
    """The count and the flaw of a file, as in `TfRecordIndex`, from what `scan` returned."""
    return len(found) - 1, int(found[0])


def _write(file: Writer, summaries: Sequence[tuple[int, int]], parts: Iterable[np.ndarray]) -> None:
    """Writes an index into an empty file.

    Args:
      file: the file to write to.
      summaries: for each of the indexed files, its `_summary`.
      parts: what `scan` returned for each; one is held in memory at a time.

    Raises:
      OSError: the file cannot be written.
      ValueError: a part is not the summarized one.
    """
    file.write(_MAGIC + np.array(summaries, "<i8").T.tobytes())
    for found, summary in zip(parts, summaries, strict=True):
        if _summary(found) != summary:
            raise ValueError("a part is not what it was")
        file.write(found[1:].astype("<i8").tobytes())


def scan(files: Files, number: int) -> np.ndarray:
    """Reads a file's headers and verifies their checksums; the data of long records are not read.

    Returns:
      int64 [1 + records]: the file's flaw, as in `TfRecordIndex.flaws`, and the end of each complete record.

    Raises:
      UserError: the file cannot be read, or does not begin with a record.
    """
    try:
        return _scan(files, number)
    except OSError as error:
        raise UserError(f"{files[number].path} cannot be read: {error.strerror or error}") from error


def _scan(files: Files, number: int) -> np.ndarray:
    file = files[number]
    remote = is_remote(file.path)
    ends: list[int] = []
    headers, checked = bytearray(), 0  # the headers from record number `checked` on
    window, start = b"", 0
    position, flaw = 0, _SOUND
    while position < file.size and flaw == _SOUND:
        offset = position - start
        if offset + HEADER > len(window):
            if position + HEADER > file.size:
                flaw = _CUT
                break
            start, offset = position, 0
            # One request for many headers, but not for the complete data of longer records.
            ahead = REMOTE_BLOCK if remote and position <= REMOTE_BLOCK * len(ends) else _PAGE
            window = files.read_once(number, start, min(ahead, file.size - start))
        header = window[offset : offset + HEADER]
        headers += header
        position += HEADER + int.from_bytes(header[:8], "little") + FOOTER
        if position > file.size:
            flaw = _CUT
        else:
            ends.append(position)
        if len(headers) == _CHECKED_AT_ONCE * HEADER:
            flaw = _check(headers, checked, ends, flaw)
            headers, checked = bytearray(), len(ends)
    flaw = _check(headers, checked, ends, flaw)
    if flaw == 0 or (flaw == _CUT and not ends and file.size < HEADER):
        raise UserError(f"{file.path} {_mistaken(files, number)}")
    return np.array([flaw, *ends], np.int64)


def _check(headers: bytearray, checked: int, ends: list[int], flaw: int) -> int:
    """Verifies the headers from record number `checked` on, and removes the ends from the first damaged one on.

    Returns:
      The flaw that is already known, or the offset of the first damaged header.
    """
    rows = np.frombuffer(headers, np.uint8).reshape(-1, HEADER)
    damaged = np.flatnonzero(masked_crc32c(rows[:, :8]) != rows[:, 8:].copy().view("<u4")[:, 0])
    if not len(damaged):
        return flaw
    del ends[checked + int(damaged[0]) :]
    return ends[-1] if ends else 0


def _mistaken(files: Files, number: int) -> str:
    """The message for a file that does not begin with a record, to follow its path."""
    begin = files.read(number, 0, min(2, files[number].size))
    # RFC 1952, 2.3.1, and RFC 1950, 2.2.
    if begin == b"\x1f\x8b" or (begin[:1] == b"\x78" and int.from_bytes(begin, "big") % 31 == 0):
        return "is a compressed TFRecord file or none: write it without compression, for records are read by position"
    return "is not a TFRecord file"


def _crc_table() -> np.ndarray:
    """CRC-32C of each byte: the reflected Castagnoli polynomial (RFC 3720, appendix B.4)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0)) ^ (table >> np.uint32(1))
    return table


_CRC_TABLE = _crc_table()


def masked_crc32c(rows: np.ndarray) -> np.ndarray:
    """The checksum of TFRecord files of each row of bytes, uint8 [n, length] to uint32 [n].

    TensorFlow, "TFRecord and tf.train.Example", TFRecords format details.
    """
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        crc = _CRC_TABLE[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
