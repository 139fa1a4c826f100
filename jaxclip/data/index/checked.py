"""Files with a checksum for each block, written in pieces and verified as they are read."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import pathlib
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

from jaxclip.data.storage import OpenFile
from jaxclip.errors import UserError

_log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed")

# The bytes under one checksum. Reading and verifying a block takes some 10 us, about as long as looking up a record.
# The checksums of the index of a billion records, which are held in memory, take 10 MB.
BLOCK = 16 << 10
# A file up to this size is verified when it is opened, which takes about 50 ms at most, so that a damaged one is
# replaced before anything depends on it. The blocks of a larger one are verified when they are first read: it opens at
# once.
VERIFIED_WHOLE = 64 << 20
_READ_AT_ONCE = 64  # blocks

# A file: the content, the CRC-32 of each of its blocks as uint32, and the footer, which has the content's length, the
# CRC-32 of the file's name, the length and the checksums, and a constant.
_FOOTER = struct.Struct("<QI20s")
_MAGIC = b"jaxclip checksums 1\n"


class Content(Protocol):
    """Bytes read by position; thread-safe.

    Attributes:
      size: the number of bytes.
    """

    size: int

    def read(self, start: int, size: int) -> bytes:
        """The `size` bytes from `start` on; all of them must be within the content."""


class InMemory:
    """Content in memory."""

    def __init__(self, content: bytes):
        self._content, self.size = content, len(content)

    def read(self, start: int, size: int) -> bytes:
        """As `Content.read`."""
        return self._content[start : start + size]


class Writer:
    """A new file written in any order, each byte once; those that are skipped are zeros."""

    def __init__(self, file: BinaryIO):
        self._file, self._position, self._size = file, 0, 0
        self._sums, self._sum_of_zeros = array.array("I"), zlib.crc32(bytes(BLOCK))
        self._begun: dict[int, tuple[bytearray, int]] = {}  # incomplete blocks: content and number of bytes written

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._file.seek(position)
        self._position = position

    def write(self, data: bytes) -> None:
        """Writes at the current position; raises OSError if that fails."""
        self._file.write(data)
        rest = memoryview(data)
        while rest:
            block, offset = divmod(self._position, BLOCK)
            piece = rest[: BLOCK - offset]
            rest = rest[len(piece) :]
            self._position += len(piece)
            if len(piece) == BLOCK:
                self._note(block, piece)
                continue
            content, written = self._begun.pop(block) if block in self._begun else (bytearray(BLOCK), 0)
            content[offset : offset + len(piece)] = piece
            if written + len(piece) == BLOCK:
                self._note(block, content)
            else:
                self._begun[block] = content, written + len(piece)
        self._size = max(self._size, self._position)

    def finish(self, name: str) -> None:
        """Writes the checksums and the footer of a file of this name."""
        for block, (content, _) in self._begun.items():
            self._note(block, content[: self._size - block * BLOCK])
        sums = np.array(self._sums, "<u4").tobytes()
        self._file.seek(self._size)
        self._file.write(sums + _FOOTER.pack(self._size, _sum_of_sums(sums, self._size, name), _MAGIC))

    def _note(self, block: int, content: bytearray | memoryview) -> None:
        if block >= len(self._sums):
            self._sums.extend(array.array("I", [self._sum_of_zeros]) * (block + 1 - len(self._sums)))
        self._sums[block] = zlib.crc32(content)


class CheckedFile:
    """The content of a file written by `Writer`; every block is verified before the first use of its bytes.

    Attributes:
      size: the number of bytes of the content.
    """

    def __init__(self, place: pathlib.Path, *, whole: bool = False):
        """Opens a file.

        Args:
          place: its path.
          whole: whether all of it is verified now, whatever its size.

        Raises:
          OSError: it cannot be read.
          ValueError: it is damaged, was written under another name, or is no such file.
        """
        self._place, self._file = place, OpenFile(str(place))
        end = os.fstat(self._file.descriptor).st_size - _FOOTER.size
        footer = self._file.read(end, _FOOTER.size) if end >= 0 else b""
        if not footer.endswith(_MAGIC):
            raise ValueError("no footer")
        self.size, stored, _ = _FOOTER.unpack(footer)
        blocks = -(-self.size // BLOCK)
        if end != self.size + 4 * blocks:
            raise ValueError("another length")
        sums = self._file.read(self.size, 4 * blocks)
        if _sum_of_sums(sums, self.size, place.name) != stored:
            raise ValueError("damaged checksums")
        self._sums = np.frombuffer(sums, "<u4")
        self._verified = bytearray(blocks)  # one byte for each, because setting it needs no lock
        self._whole = whole or self.size <= VERIFIED_WHOLE
        if self._whole:
            self._verify(0, blocks)

    def read(self, start: int, size: int) -> bytes:
        """As `Content.read`.

        Raises:
          UserError: the file is damaged, and was removed so that it is made anew; or it cannot be read.
        """
        try:
            if not self._whole:
                first, end = start // BLOCK, (start + size - 1) // BLOCK + 1
                if self._verified.find(0, first, end) >= 0:
                    self._verify(first, end)
            data = self._file.read(start, size)
            if len(data) != size:
                raise ValueError("the file was cut")
        except OSError as error:
            raise UserError(
                f"the index {self._place} cannot be read: {error.strerror or error}; remove it and start again, it is "
                "made anew"
            ) from error
        except ValueError as error:
            raise UserError(f"the index {self._place} is damaged: {self._remove()}") from error
        return data

    def _verify(self, first: int, end: int) -> None:
        """Verifies the blocks from `first` to `end`; raises OSError or ValueError."""
        for start in range(first, end, _READ_AT_ONCE):
            blocks = range(start, min(start + _READ_AT_ONCE, end))
            size = min(len(blocks) * BLOCK, self.size - start * BLOCK)
            data = memoryview(self._file.read(start * BLOCK, size))
            for block, offset in zip(blocks, range(0, size, BLOCK), strict=True):
                if zlib.crc32(data[offset : offset + BLOCK]) != self._sums[block]:
                    raise ValueError("a damaged block")
                self._verified[block] = 1

    def _remove(self) -> str:
        """Removes the file unless another process has replaced it; returns what to do, for a message."""
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._place), os.fstat(self._file.descriptor)):
                    self._place.unlink()
        except OSError as error:
            return f"it cannot be removed ({error.strerror}); remove it and start again, it is made anew"
        return "start again, it is made anew"


def open_checked(place: pathlib.Path, parse: Callable[[CheckedFile], Parsed], *, whole: bool = False) -> Parsed | None:
    """What a file contains; None if it is missing, or if it is damaged, which is logged, and it is removed.

    Args:
      place: path of the file.
      parse: makes the result from the content; raises ValueError if it is not as expected.
      whole: as in `CheckedFile`.
    """
    try:
        return parse(CheckedFile(place, whole=whole))
    except (UserError, ValueError):
        _log.warning("the index %s is damaged or of another version: it is made anew", place)
        with contextlib.suppress(OSError):
            place.unlink()
    except OSError:
        pass
    return None


def _sum_of_sums(sums: bytes, size: int, name: str) -> int:
    return zlib.crc32(sums, zlib.crc32(size.to_bytes(8, "little") + os.fsencode(name)))
