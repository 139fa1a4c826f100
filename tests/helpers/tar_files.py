"""Tars for tests."""

from __future__ import annotations

import io
import pathlib
import tarfile


def write_tar(path: pathlib.Path, members, form=tarfile.PAX_FORMAT) -> pathlib.Path:
    """Writes a tar of (name, bytes) pairs and TarInfos."""
    with tarfile.open(path, "w", format=form) as file:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.jpg"
    return info


def numbered(first: int, count: int) -> list[tuple[str, bytes]]:
    """Images and captions that say their number, in records of 2048 bytes."""
    return [
        member
        for number in range(first, first + count)
        for member in ((f"{number:03d}.jpg", b"%d" % number * 300), (f"{number:03d}.txt", b"%d" % number))
    ]


def header(name: bytes = b"a.jpg", size: int | bytes = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A ustar header of 512 bytes with a right checksum, whatever is in it.

    Args:
      name: the first 100 bytes.
      size: a number, or the 12 bytes of the field.
      kind: the type flag.
      fields: bytes to put at `at_NUMBER`.
    """
    block = bytearray(512)
    block[: len(name[:100])] = name[:100]
    block[100:108] = b"0000644\0"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for place, data in fields.items():
        start = int(place.removeprefix("at_"))
        block[start : start + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    """A header with its data, padded."""
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(**said: str | bytes) -> bytes:
    """An extended header with these records for the next member ("__" stands for ".")."""
    records = b""
    for keyword, value in said.items():
        rest = (
            b" " + keyword.replace("__", ".").encode() + b"=" + (value if isinstance(value, bytes) else value.encode())
        )
        length = len(rest) + 1
        while length != len(rest) + 1 + len(str(length)):
            length = len(rest) + 1 + len(str(length))
        records += b"%d" % length + rest + b"\n"
    return member(b"PaxHeader", records, b"x")
