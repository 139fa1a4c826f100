"""Enumeration of a tar's members from its headers, without reading the data between them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from jaxclip.data.storage import REMOTE_BLOCK, Files, is_remote
from jaxclip.errors import UserError

BLOCK = 512
_LARGEST_EXTENDED_HEADER = 1 << 20
_MOST_EXTENDED_HEADERS = 16  # before one member; in practice there are up to three
_LONGEST_NAME = 4096  # Linux's PATH_MAX
_WITHOUT_DATA = b"123456"  # links, devices, folders and pipes, whatever their size field says

_LOCAL_READ = 4096  # bytes read with a header of a local file; may include small members, and is a disk's smallest read
_REMOTE_READ = 16 << 10  # the same for a remote file whose next header is far away
# Remote headers that are closer than this are fetched with the data between them. A request takes some 50 ms, the time
# of about 1 MiB when several threads share the network; but storage providers may charge for fetched data.
_CLOSE = 256 << 10


class FlawError(Exception):
    """The rest of a tar cannot be read; the message follows its path."""


def walk(files: Files, number: int) -> Iterator[tuple[bytes, int | None, int]]:
    """Yields (name, first block of the data, size in bytes) of every member of a tar that is not a folder.

    The block is None for links, devices, sparse files and names that are invalid in file systems. The supported formats
    are ustar and pax (POSIX.1-2017, pax, Extended Description) and GNU (GNU tar manual, Basic Tar Format). Unlike
    `tarfile`, this distinguishes a damaged header from the end, and takes a quarter of the time.

    Raises:
      OSError: the file cannot be read.
      UserError: it does not begin with a tar header.
      FlawError: the tar is truncated, or a later header is damaged.
    """
    path, end = files[number].path, files[number].size
    not_a_tar = UserError(f"{path} is not a tar: shards are uncompressed tars, for they are read by position")
    reader = _Reader(files, number)
    position = chain = 0
    name, size, sparse = None, None, False  # of the next member, from the extended headers before its own
    while end:
        start = position
        header = reader.read(start, BLOCK)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise FlawError("is cut short") if start else not_a_tar
        kind, stored = header[156:157], _number(header[124:136])
        extended = kind in b"xgLK"
        chain = chain + 1 if extended else 0
        if (
            stored is None
            or not _is_intact(header)
            or (extended and stored > _LARGEST_EXTENDED_HEADER)
            or chain > _MOST_EXTENDED_HEADERS
        ):
            raise FlawError(f"has a damaged header at byte {start}") if start else not_a_tar
        position += BLOCK
        if extended:
            payload = reader.read(position, stored)
            position += _padded(stored)
            if kind == b"L":
                name = payload.partition(b"\0")[0]
            elif kind == b"x":
                said = dict(_pax_records(payload))
                name = said.get(b"path", name)
                digits = said.get(b"size", b"")
                size = int(digits) if digits.isdigit() and len(digits) < 20 else size
                sparse = any(keyword.startswith(b"GNU.sparse.") for keyword in said)
            continue
        more = header[482:483].strip(b"\0") if kind == b"S" else b""
        while more:  # the map of an old GNU sparse file continues in further blocks
            more = reader.read(position, BLOCK)[504:505].strip(b"\0")
            position += BLOCK
        if name is None:
            name = _name(header)
        if size is None:
            size = stored
        block = position // BLOCK
        if block >> 32:
            raise FlawError("is larger than 2 TiB")
        if kind not in _WITHOUT_DATA:
            if position + size > end:
                raise FlawError("is cut short")
            position += _padded(size)
        reader.members += 1
        if kind != b"5" and not name.endswith(b"/"):
            regular = kind in b"07\0" and not sparse and len(name) <= _LONGEST_NAME
            yield name, block if regular else None, size
        name, size, sparse = None, None, False


class _Reader:
    """Reads of short pieces of one file in order, with a small read-ahead."""

    def __init__(self, files: Files, number: int):
        self._files, self._number = files, number
        self._end, self._remote = files[number].size, is_remote(files[number].path)
        self._window, self._start = b"", 0
        self.members = 0  # passed so far

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes, or fewer at the end of the file."""
        offset = position - self._start
        if offset + size > len(self._window):
            ahead = _LOCAL_READ
            if self._remote:
                ahead = REMOTE_BLOCK if position < _CLOSE * self.members else _REMOTE_READ
            length = min(max(size, ahead), self._end - position)
            if length <= 0:  # the padding after the last member may be missing
                return b""
            self._window, self._start, offset = self._files.read_once(self._number, position, length), position, 0
        return self._window[offset : offset + size]


def _is_intact(header: bytes) -> bool:
    """Whether the sum of a header's bytes equals its checksum, whose own bytes count as spaces."""
    # The lower half of Adler-32 is such a sum, modulo 65521 (RFC 1950, 2.2).
    added = zlib.adler32(header[156:], zlib.adler32(header[:148], 8 * ord(" "))) & 0xFFFF
    stored = _number(header[148:156])
    return stored is not None and stored % 65521 == added


def _padded(size: int) -> int:
    """The size of a member's data in bytes, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int | None:
    """A number in a header: octal text, or base 256 if the first bit is set (GNU); None if invalid or negative."""
    if field[0] & 0x80:
        return None if field[0] & 0x40 else int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    digits = field.partition(b"\0")[0].strip() or b"0"
    return None if digits.strip(b"01234567") else int(digits, 8)


def _name(header: bytes) -> bytes:
    """The name in a member's own header."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (keyword, value) pairs of a pax header, lines "LENGTH KEYWORD=VALUE", up to the first invalid line."""
    start = 0
    while start < len(payload):
        digits = payload[start : start + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, separator, value = payload[start + len(digits) + 1 : start + max(length - 1, 0)].partition(b"=")
        if not separator:
            return
        yield keyword, value
        start += length
