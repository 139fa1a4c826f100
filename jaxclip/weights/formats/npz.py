"""Reader of .npz files as written by numpy.savez and numpy.savez_compressed, such as big_vision's models.

An .npz is a zip of .npy files. zipfile reads its directory, numpy.lib.format the header of each array. Arrays of Python
objects, which can run code when they are unpickled, are rejected.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np

from jaxclip.errors import UserError
from jaxclip.io import printable
from jaxclip.weights.formats.mapped import COPY_AGAIN, MOST_DIMENSIONS, Mapped, archived, pytorch

MAGIC = (b"PK\3\4", b"PK\5\6")  # the first bytes of a zip, and of an empty one

_MOST_DIRECTORY = 4 << 20  # bytes of the zip's list of members; a thousand of them take a tenth of a million
# Weights compress little: a file that unpacks to more than this is a zip bomb.
_MOST_GROWTH, _GROWS_FREELY = 20, 256 << 20
_LONGEST_NAME = 500
_PIECE = 1 << 20


class _Archive(zipfile.ZipFile):
    """A zip with a limit on its directory, which zipfile would read at once whatever its declared size."""

    def __init__(self, path: pathlib.Path):
        self._file = _Bounded(path)
        try:
            super().__init__(self._file)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        super().close()
        self._file.close()


class _Bounded(io.FileIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory is longer than {_MOST_DIRECTORY:,} bytes")
        return super().read(size) or b""


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor that must be unpacked or converted to this machine's byte order.

    Attributes:
      path: the .npz file.
      member: the array's entry in the directory.
      skipped: the length of its header in bytes.
      shape: the tensor's shape.
      stored: the dtype of its values in the file.
      order: "C" or "F".
    """

    path: pathlib.Path
    member: zipfile.ZipInfo
    skipped: int
    shape: tuple[int, ...]
    stored: np.dtype
    order: str

    @property
    def dtype(self) -> np.dtype:
        return self.stored.newbyteorder("<")

    def read(self) -> np.ndarray:
        """The values, read-only. Raises UserError if they are damaged."""
        content = np.empty(self.member.file_size, np.uint8)
        filled = 0
        try:
            # zipfile stops after file_size bytes, and checks the checksum there.
            with _Archive(self.path) as archive, archive.open(self.member) as file:
                while piece := file.read(_PIECE):
                    content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                    filled += len(piece)
        except Exception:  # zipfile raises many different exceptions for damaged files
            filled = -1
        if filled != len(content):
            raise UserError(f"{self.path}, {self.member.filename!r}, is damaged; {COPY_AGAIN}")
        values = np.ndarray(self.shape, self.stored, content, self.skipped, order="F" if self.order == "F" else "C")
        values = values.astype(self.dtype, copy=False)
        values.flags.writeable = False  # as in mapped files
        return values


def open_npz(path: pathlib.Path, content: mmap.mmap) -> dict[str, Mapped | Packed]:
    """The tensors of an .npz by name, in the file's order, which is that of numpy.savez's arguments.

    A member that is stored uncompressed becomes a view of the file; a deflated or big-endian one is unpacked when it is
    read. Values of type V2, two bytes without a declared meaning, are bfloat16: NumPy writes ml_dtypes' bfloat16 as V2,
    and no other type of two bytes. (Its types of one byte are all written alike, and are rejected.)

    Before anything is unpacked, the sizes in the directory are checked: their sum is at most 20 times the file's size
    and 256 MiB. This also bounds the memory for reading a tensor, whatever the file contains.

    Args:
      path: path of the file.
      content: the mapped content of the file, which starts like a zip.

    Raises:
      UserError: it is a PyTorch file, is damaged, or contains anything but numbers.
    """
    try:
        with _Archive(path) as archive:
            members = _members(path, archive, len(content))
            return {member.filename.removesuffix(".npy"): _tensor(path, archive, member, content) for member in members}
    except UserError:
        raise
    except Exception as error:  # as above
        # A truncated zip has no directory; torch's files begin with the pickle.
        if b"data.pkl" in content[:200]:
            raise pytorch(path) from None
        reason = printable(str(error), 80) or type(error).__name__
        raise UserError(f"{path} is a zip that is damaged or cut short ({reason}); {COPY_AGAIN}") from None


def _members(path: pathlib.Path, archive: zipfile.ZipFile, length: int) -> list[zipfile.ZipInfo]:
    """The arrays in a file of `length` bytes. Raises UserError for other members, and if they unpack to too much."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
        raise pytorch(path)
    if not names:
        raise UserError(f"{path} holds no arrays; {COPY_AGAIN}")
    for name in names:
        if not name.endswith(".npy") or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise archived(
                path, f"a zip archive and no .npz, because it holds {printable(name, 80)!r}, which is no array"
            )
    if len(set(names)) != len(names):
        raise UserError(f"{path} is damaged: it holds an array twice; {COPY_AGAIN}")
    size = sum(member.file_size for member in members)
    if size > _MOST_GROWTH * length + _GROWS_FREELY:
        raise UserError(
            f"{path} would unpack to {size:,} bytes, {size // length:,} times its size: it is no weights file"
        )
    return members


def _tensor(
    path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, content: mmap.mmap
) -> Mapped | Packed:
    where = f"{path}, {member.filename.removesuffix('.npy')!r},"
    # zipfile unpacks bzip2 and LZMA without a limit on memory.
    if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{where} is encrypted or packed in a way that NumPy does not; save it again with numpy.savez")
    try:
        with archive.open(member) as file:  # compares the member's own header with the directory
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, is_fortran, stored = read(file)
            skipped = file.tell()
    except Exception as error:  # NumPy's parser also raises many different exceptions
        reason = printable(str(error).partition("\n")[0], 80)
        raise UserError(f"{where} is not an array as NumPy writes it ({reason}); {COPY_AGAIN}") from None
    if stored.hasobject:
        raise UserError(
            f"{where} holds Python objects, which can run code when opened; save its arrays of numbers alone"
        )
    if stored.kind == "V" and stored.itemsize == 2 and stored.names is None and stored.subdtype is None:
        stored = np.dtype(ml_dtypes.bfloat16)
    elif stored.kind not in "biuf" or stored.itemsize > 8:
        raise UserError(f"{where} holds values of type {printable(str(stored), 80)}; save it again as float32")
    shape = tuple(map(int, shape))
    if (
        len(shape) > MOST_DIMENSIONS
        or min(shape, default=0) < 0
        or math.prod(size or 1 for size in shape) * stored.itemsize >= 1 << 63
        or skipped + math.prod(shape) * stored.itemsize != member.file_size
    ):
        raise UserError(f"{where} is of another size than its shape {printable(str(shape), 80)} takes; {COPY_AGAIN}")
    order = "F" if is_fortran else "C"
    if member.compress_type == zipfile.ZIP_DEFLATED or stored != stored.newbyteorder("<"):
        return Packed(path=path, member=member, skipped=skipped, shape=shape, stored=stored, order=order)
    name_length, extra_length = struct.unpack_from("<2H", content, member.header_offset + 26)
    start = member.header_offset + 30 + name_length + extra_length
    if start + member.file_size > len(content) or member.compress_size != member.file_size:
        raise UserError(f"{where} is cut short; {COPY_AGAIN}")
    return Mapped(content, start + skipped, shape, stored, order)
