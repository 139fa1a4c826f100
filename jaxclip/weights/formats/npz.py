"""Arrays from an .npz file as numpy.savez and numpy.savez_compressed write them, big_vision's models among them.

An .npz is a zip of .npy files; each is a header, `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, and the
values (numpy.lib.format). What can hold code, arrays of Python objects, is refused.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from jaxclip.errors import UserError
from jaxclip.weights.formats.mapped import COPY_AGAIN, MOST_DIMENSIONS, Mapped, pytorch

MAGIC = (b"PK\3\4", b"PK\5\6")  # what a zip begins with, and an empty one

_MOST_DIRECTORY = 4 << 20  # bytes of the zip's list of members; a thousand of them take a tenth of a million
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 0x1
# Weights hardly shrink; what unpacks to more than this is a bomb.
_MOST_GROWTH, _GROWS_FREELY = 20, 256 << 20
_LONGEST_NPY_HEADER = 1000
_PIECE = 64 << 10

# The header is matched rather than evaluated. NumPy has written it in just this form since its first version.
_NPY_HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^']{1,20}'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,19}, ?)*\d{0,19})\),? ?\} *\n?"
)
_DESCR = re.compile(r"'[<>|=](?:b1|[iu][1248]|f[248])'")


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor that has to be unpacked or brought into this machine's byte order.

    Attributes:
      where: the file and the member, for messages.
      content: the file's.
      start, length: where the member stands in it.
      size: of the member unpacked.
      crc: of the member unpacked.
      is_packed: whether it is deflated.
      skipped: how many bytes come before the values.
      shape: of the tensor.
      stored: the type of its values in the file.
      order: "C" or "F".
    """

    where: str
    content: mmap.mmap
    start: int
    length: int
    size: int
    crc: int
    is_packed: bool
    skipped: int
    shape: tuple[int, ...]
    stored: np.dtype
    order: str

    @property
    def dtype(self) -> np.dtype:
        return self.stored.newbyteorder("<")

    def read(self) -> np.ndarray:
        """The values. Raises UserError where they are damaged."""
        member = np.empty(self.size, np.uint8)
        filled = crc = 0
        for piece in self._pieces():
            if filled + len(piece) > self.size:
                raise UserError(f"{self.where} unpacks to more than it says; {COPY_AGAIN}")
            member[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
            crc = zlib.crc32(piece, crc)
        if filled != self.size or crc != self.crc:
            raise UserError(f"{self.where} is damaged; {COPY_AGAIN}")
        values = np.ndarray(self.shape, self.stored, member, self.skipped, order="F" if self.order == "F" else "C")
        values = values.astype(self.dtype, copy=False)
        values.flags.writeable = False  # as those of a mapped file are
        return values

    def _pieces(self) -> Iterator[bytes]:
        """The member, unpacked, in pieces whose size does not depend on what it says."""
        end = self.start + self.length
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        for place in range(self.start, end, _PIECE):
            piece = self.content[place : min(place + _PIECE, end)]
            if not self.is_packed:
                yield piece
                continue
            while piece:
                try:
                    yield unpack.decompress(piece, 16 * _PIECE)
                except zlib.error:
                    raise UserError(f"{self.where} is damaged; {COPY_AGAIN}") from None
                piece = unpack.unconsumed_tail
                if unpack.unused_data:
                    raise UserError(f"{self.where} is damaged; {COPY_AGAIN}")
        if self.is_packed:
            yield unpack.flush()
            if not unpack.eof:
                raise UserError(f"{self.where} is cut short; {COPY_AGAIN}")


class _Bounded(io.FileIO):
    """A file that is never read by more than the longest directory at once: zipfile reads as much as the file says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory is longer than {_MOST_DIRECTORY:,} bytes")
        return super().read(size) or b""


def open_npz(path: pathlib.Path, content: mmap.mmap) -> dict[str, Mapped | Packed]:
    """The tensors of an .npz by name, in its order, which is that of numpy.savez's arguments.

    A member that is stored as it is becomes a view of the file; a deflated or big-endian one is unpacked when it is
    read. Values of type V2, two bytes of no stated meaning, are bfloat16: NumPy writes ml_dtypes' bfloat16 as that,
    and no other type of two bytes. (Its types of one byte are all written alike, and refused.)

    Args:
      path: of the file.
      content: the file mapped; a zip's first bytes were seen in it.

    Raises:
      UserError: it is a PyTorch file, or damaged, or holds anything but numbers.
    """
    members = _members(path, content)
    size = sum(member.file_size for member in members)
    if size > _MOST_GROWTH * len(content) + _GROWS_FREELY:
        raise UserError(
            f"{path} would unpack to {size:,} bytes, {size // len(content):,} times its size, which no weights do"
        )
    tensors = {}
    for member in members:
        name = _name(member)
        where = f"{path}, {name!r},"
        try:
            tensors[name] = _tensor(where, member, content)
        except ValueError as error:
            raise UserError(f"{where} {error}") from None
    if not tensors:
        raise UserError(f"{path} holds no arrays; {COPY_AGAIN}")
    return tensors


def _members(path: pathlib.Path, content: mmap.mmap) -> list[zipfile.ZipInfo]:
    """What the zip's directory lists, in the order of the file; nothing but arrays with sound names, each once."""
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            members, end = archive.infolist(), archive.start_dir
    except Exception as error:  # zipfile raises half a dozen kinds over damaged files
        # A zip that is cut short has no directory; torch's begin with the pickle.
        if b"data.pkl" in content[:200]:
            raise pytorch(path) from None
        raise UserError(f"{path} is a zip that is damaged or cut short ({_line(error)}); {COPY_AGAIN}") from None
    names = [member.orig_filename for member in members]
    if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
        raise pytorch(path)
    for member in members:
        if not _is_sound(member.orig_filename):
            raise UserError(f"{path} is not an .npz: it holds {_shown(member.orig_filename)}, which names no array")
    if len(set(names)) != len(names):
        raise UserError(f"{path} is damaged: it holds an array twice; {COPY_AGAIN}")
    members.sort(key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in members), end][1:]
    for member, after in zip(members, ends, strict=True):
        if not 0 <= member.header_offset <= after - _LOCAL_HEADER.size - member.compress_size:
            raise UserError(f"{path} is damaged: {_name(member)!r} overlaps what comes after it; {COPY_AGAIN}")
    return members


def _is_sound(name: str) -> bool:
    """Whether a member's name is that of an array, and leads nowhere: names have slashes, as paths do."""
    parts = name.removesuffix(".npy").split("/")
    return (
        name.endswith(".npy")
        and name.isprintable()
        and len(name) <= 500
        and not set(parts) & {"", ".", ".."}
        and ("\\" not in name and ":" not in name)
    )


def _name(member: zipfile.ZipInfo) -> str:
    return member.orig_filename.removesuffix(".npy")


def _tensor(where: str, member: zipfile.ZipInfo, content: mmap.mmap) -> Mapped | Packed:
    """One member as a tensor. Raises ValueError, with what is wrong and what to do."""
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("is encrypted or packed in a way that NumPy does not; save it again with numpy.savez")
    start = _start(member, content)
    if start + member.compress_size > len(content):
        raise ValueError(f"is cut short; {COPY_AGAIN}")
    is_packed = member.compress_type == zipfile.ZIP_DEFLATED
    if not is_packed and member.compress_size != member.file_size:
        raise ValueError(f"is of another size than the zip says; {COPY_AGAIN}")
    begin = content[start : start + min(member.compress_size, _LONGEST_NPY_HEADER)]
    if is_packed:
        try:
            begin = zlib.decompressobj(-zlib.MAX_WBITS).decompress(begin, _LONGEST_NPY_HEADER)
        except zlib.error:
            raise ValueError(f"is damaged; {COPY_AGAIN}") from None
    shape, stored, order, skipped = _header(begin)
    if skipped + math.prod(shape) * stored.itemsize != member.file_size:
        raise ValueError(f"is of another size than its shape {shape} takes; {COPY_AGAIN}")
    if not is_packed and stored == stored.newbyteorder("<"):
        return Mapped(content, start + skipped, shape, stored, order)
    return Packed(
        where,
        content,
        start,
        member.compress_size,
        member.file_size,
        member.CRC,
        is_packed,
        skipped,
        shape,
        stored,
        order,
    )


def _start(member: zipfile.ZipInfo, content: mmap.mmap) -> int:
    """Where a member's bytes begin: after a header that repeats the directory's entry. Raises ValueError."""
    header = content[member.header_offset : member.header_offset + _LOCAL_HEADER.size]
    if len(header) == _LOCAL_HEADER.size:
        magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        place = member.header_offset + _LOCAL_HEADER.size
        name = content[place : place + name_length]
        # Bit 11 says that the name is UTF-8.
        expected = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
        if magic == b"PK\3\4" and name == expected:
            return place + name_length + extra_length
    raise ValueError(f"is not where the zip says; {COPY_AGAIN}")


def _header(begin: bytes) -> tuple[tuple[int, ...], np.dtype, str, int]:
    """The shape, type and order that an .npy begins with, and where its values begin. Raises ValueError."""
    if begin[:6] != b"\x93NUMPY" or begin[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError("is not an .npy file of version 1 or 2; save it again with numpy.savez")
    width = 2 if begin[6] == 1 else 4
    skipped = 8 + width + int.from_bytes(begin[8 : 8 + width], "little")
    found = _NPY_HEADER.fullmatch(begin[8 + width : skipped].decode("latin-1"))
    if skipped > len(begin) or found is None:
        raise ValueError(f"has a header that NumPy does not write for an array of numbers; {COPY_AGAIN}")
    descr = found["descr"]
    if "O" in descr:
        raise ValueError("holds Python objects, which can run code when opened; save its arrays of numbers alone")
    if descr in ("'<V2'", "'|V2'"):
        stored = np.dtype(ml_dtypes.bfloat16)
    elif _DESCR.fullmatch(descr):
        stored = np.dtype(descr.strip("'"))
    else:
        raise ValueError(f"holds values of type {_shown(descr)}; save it again as float32")
    shape = tuple(int(size) for size in re.findall(r"\d+", found["shape"]))
    if len(shape) > MOST_DIMENSIONS or math.prod(size or 1 for size in shape) * stored.itemsize >= 1 << 63:
        raise ValueError(f"has the impossible shape ({_shown(found['shape'])}); {COPY_AGAIN}")
    return shape, stored, "F" if found["fortran"] == "True" else "C", skipped


def _shown(text: str) -> str:
    """Foreign text in a message: escaped where it cannot be printed, and not long."""
    return ascii(text[:80])


def _line(error: Exception) -> str:
    return _shown(str(error).partition("\n")[0]).strip("'") or type(error).__name__
