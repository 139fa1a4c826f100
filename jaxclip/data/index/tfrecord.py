"""Index of the ends of records in TFRecord files, built once from their headers and kept in a cache folder."""

from __future__ import annotations

import concurrent.futures
import pathlib
import shutil
import sys

import numpy as np
import tqdm

from jaxclip.data.index.keep import keep
from jaxclip.data.storage import REMOTE_BLOCK, Files, cache_folder, fingerprint, is_remote
from jaxclip.errors import UserError

HEADER = 12  # a record: its length in 8 bytes, the length's checksum in 4, the data, the data's checksum in 4
FOOTER = 4

# Flaws of a file other than the position of a damaged header.
_SOUND, _CUT = -1, -2

_PAGE = 4096  # bytes read with a header; may include small records, and is a disk's smallest read
_CHECKED_AT_ONCE = 4096  # headers


class TfRecordIndex:
    """Ends of the records of all files in order; in an index from the cache, they are memory-mapped.

    Attributes:
      counts: int64 [files], the number of records in each file.
      flaws: int64 [files], -1 for an intact file, -2 for a truncated one, otherwise the offset of a damaged header.
      ends: int64 [records], the offset in its file at which each record ends and the next one starts.
    """

    def __init__(self, table: np.ndarray, files: int):
        """Takes an int64 array of counts, flaws and ends, and the number of files."""
        self.counts, self.flaws, self.ends = table[:files], table[files : 2 * files], table[2 * files :]

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
    place = folder / f"{fingerprint(files)}.npy"
    parts = place.with_suffix(".parts")
    table = _restore(place, mapped=True)
    if table is not None and _fits(table, len(files)):
        return TfRecordIndex(table, len(files))

    def part(number: int) -> np.ndarray:
        kept = parts / f"{number}.npy"
        found = _restore(kept, mapped=False)
        if found is None or not len(found):
            found = scan(files, number)
            keep(kept, lambda file: np.save(file, found))
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
        running = {pool.submit(part, number): number for number in range(len(files))}
        try:
            for done in concurrent.futures.as_completed(running):
                done.result()
                bar.update(files[running[done]].size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = [future.result() for future in running]
    counts = [len(one) - 1 for one in found]
    table = np.concatenate([np.array(counts, np.int64), [one[0] for one in found], *(one[1:] for one in found)])
    keep(place, lambda file: np.save(file, table))
    shutil.rmtree(parts, ignore_errors=True)
    return TfRecordIndex(table, len(files))


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


def _fits(table: np.ndarray, files: int) -> bool:
    """Whether an array from the cache is a valid index of `files` files."""
    counts = table[:files]
    return len(table) >= 2 * files and bool(np.all(counts >= 0)) and int(counts.sum()) == len(table) - 2 * files


def _restore(place: pathlib.Path, *, mapped: bool) -> np.ndarray | None:
    """An int64 array from the cache; None if it is missing or damaged."""
    try:
        table = np.load(place, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if isinstance(table, np.ndarray) and table.dtype == np.int64 and table.ndim == 1 else None
