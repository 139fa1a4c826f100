"""Where each record of a tar lies: read from its headers once, and kept beside it or in a cache folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import secrets
import zipfile
from collections.abc import Iterator

import numpy as np

from jaxclip.errors import UserError

_log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_INDEX_FORMAT = 1  # a kept index of another format is made anew
BLOCK = 512
_LARGEST_EXTENDED_HEADER = 1 << 20
_NAMED_EXTENSIONS = 12  # so many are remembered for messages
_WITHOUT_DATA = b"123456"  # links, devices, folders and pipes, whatever their size field says


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The records of one tar: 32 bytes and the name for each.

    Attributes:
      places: uint32 [records, 3, 2], for the picture, the caption and the label the member's first block of 512 bytes
        and its size in bytes; (0, 0) where there is none (block 0 is always a header).
      json_captions: bool [records], whether the caption's member is json.
      keys: uint8 [bytes], the names of the records, end to end.
      key_ends: int64 [records], where each name ends in `keys`.
      members: how many regular files the tar holds.
      pictureless: how many records were left out because they have no picture.
      irregular: how many links, devices and sparse files were passed over.
      extensions: those met, the first few.
      flaw: what is wrong with the tar, to follow its path in a message; empty for a sound one.
    """

    places: np.ndarray
    json_captions: np.ndarray
    keys: np.ndarray
    key_ends: np.ndarray
    members: int
    pictureless: int
    irregular: int
    extensions: tuple[str, ...]
    flaw: str

    def __len__(self) -> int:
        return len(self.places)

    def key(self, row: int) -> str:
        """The name that the record's members share."""
        start = self.key_ends[row - 1] if row else 0
        return self.keys[start : self.key_ends[row]].tobytes().decode("utf-8", errors="replace")

    @property
    def has_text_or_label(self) -> bool:
        """Whether any record has a .txt or a .cls member."""
        _, caption, label = (self.places[:, :, 0] > 0).T
        return bool(np.any(label | (caption & ~self.json_captions)))


_ARRAYS = ("places", "json_captions", "keys", "key_ends")
_FACTS = ("members", "pictureless", "irregular", "extensions", "flaw")


def load_index(path: pathlib.Path) -> ShardIndex:
    """The index of a tar: the kept one if the tar's size and time are as they were, or else a new one, kept.

    It is kept beside the tar, as `NAME.tar.index.npz`, or where that folder is not to be written in, in
    `$JAXCLIP_CACHE/tar-index` (by default `~/.cache/jaxclip/tar-index`); where neither can be written, nowhere.

    Raises:
      UserError: the file cannot be read or is not a tar.
    """
    cache = pathlib.Path(os.environ.get("JAXCLIP_CACHE") or "~/.cache/jaxclip").expanduser() / "tar-index"
    places = [cache / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.npz"]
    try:
        # The superuser may write everywhere; a folder without any write permission is still to be left alone.
        if os.access(path.parent, os.W_OK) and path.parent.stat().st_mode & 0o222:
            places.insert(0, path.with_name(f"{path.name}.index.npz"))
        status = path.stat()
        stamp = [_INDEX_FORMAT, status.st_size, status.st_mtime_ns]
        for place in places:
            index = _restore(place, stamp)
            if index is not None:
                return index
        index = scan(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for place in places:
        with contextlib.suppress(OSError):
            _keep(index, place, stamp)
            break
    return index


def scan(path: pathlib.Path) -> ShardIndex:
    """Indexes a tar by reading its headers only.

    Members that share a name up to the first dot of its last part are one record (webdataset's rule), wherever they
    stand in the tar. Of a tar that is cut or damaged, the whole members before the flaw are indexed.

    Raises:
      OSError: the file cannot be read.
      UserError: it is not a tar.
    """
    columns = {"txt": 1, "json": 2, "cls": 3} | dict.fromkeys(IMAGE_EXTENSIONS, 0)
    records: dict[bytes, list[tuple[int, int]]] = {}
    extensions: dict[str, None] = {}
    members = irregular = 0
    flaw = ""
    try:
        for name, block, size in _members(path):
            if block is None or size >= 1 << 32:
                irregular += 1
                continue
            members += 1
            folder, slash, base = name.rpartition(b"/")
            stem, dot, extension = base.partition(b".")
            suffix = extension.decode("utf-8", errors="replace").lower()
            if len(extensions) < _NAMED_EXTENSIONS:
                extensions[f".{suffix}" if dot else "(none)"] = None
            if stem and dot:
                record = records.setdefault(folder + slash + stem, [(0, 0)] * 4)
                if suffix in columns:
                    record[columns[suffix]] = (block, size)
    except _FlawError as error:
        flaw = str(error)
    whole = {key: record for key, record in records.items() if record[0][0]}
    places = np.array(list(whole.values()), np.uint32).reshape(-1, 4, 2)
    json_captions = (places[:, 1, 0] == 0) & (places[:, 2, 0] > 0)
    places[json_captions, 1] = places[json_captions, 2]
    return ShardIndex(
        places=places[:, (0, 1, 3)],
        json_captions=json_captions,
        keys=np.frombuffer(b"".join(whole), np.uint8),
        key_ends=np.cumsum([len(key) for key in whole], dtype=np.int64),
        members=members,
        pictureless=len(records) - len(whole),
        irregular=irregular,
        extensions=tuple(extensions),
        flaw=flaw,
    )


def _keep(index: ShardIndex, place: pathlib.Path, stamp: list[int]) -> None:
    """Writes an index so that a reader sees the whole of it or nothing. Raises OSError where it cannot."""
    place.parent.mkdir(parents=True, exist_ok=True)
    facts = json.dumps({"stamp": stamp} | {name: getattr(index, name) for name in _FACTS})
    unfinished = place.with_name(f"{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            np.savez(file, facts=np.array(facts), **{name: getattr(index, name) for name in _ARRAYS})
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)


def _restore(place: pathlib.Path, stamp: list[int]) -> ShardIndex | None:
    """The index kept in a file; None where there is none, it is broken, or the tar has changed since."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            facts = json.loads(str(kept["facts"]))
            if facts.pop("stamp") != stamp:
                return None
            facts["extensions"] = tuple(facts["extensions"])
            return ShardIndex(**{name: kept[name] for name in _ARRAYS}, **facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


class _FlawError(Exception):
    """A tar cannot be walked further; the message follows its path."""


def _members(path: pathlib.Path) -> Iterator[tuple[bytes, int | None, int]]:
    """Walks a tar's headers: (name, first block of the data, size in bytes) of every member that is not a folder.

    The block is None for links, devices and sparse files. Knows the ustar and pax forms (POSIX.1-2017, pax, Extended
    Description) and GNU's (GNU tar manual, Basic Tar Format). Unlike `tarfile`, and in a fifth of its time, it tells
    a damaged header from the end.

    Raises:
      UserError: the file does not begin with a tar header.
      _FlawError: the tar is cut, or a later header is damaged.
    """
    not_a_tar = UserError(f"{path} is not a tar: shards are uncompressed tars, for they are read by position")
    with path.open("rb", buffering=0) as file:
        descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
        position = 0
        name, size, sparse = None, None, False  # said of the next member by the extended headers before its own
        while end:
            start = position
            header = os.pread(descriptor, BLOCK, start)
            if header == bytes(BLOCK):
                return
            if len(header) < BLOCK:
                raise _FlawError("is cut short") if start else not_a_tar
            kind, stored = header[156:157], _number(header[124:136])
            checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
            extended = kind in b"xgLK"
            if (
                stored is None
                or _number(header[148:156]) != checksum
                or (extended and stored > _LARGEST_EXTENDED_HEADER)
            ):
                raise _FlawError(f"has a damaged header at byte {start}") if start else not_a_tar
            position += BLOCK
            if extended:
                payload = os.pread(descriptor, stored, position)
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
            while more:  # the map of an old GNU sparse file goes on in blocks of its own
                more = os.pread(descriptor, BLOCK, position)[504:505].strip(b"\0")
                position += BLOCK
            if name is None:
                name = _name(header)
            if size is None:
                size = stored
            block = position // BLOCK
            if kind not in _WITHOUT_DATA:
                if position + size > end:
                    raise _FlawError("is cut short")
                position += _padded(size)
            if kind != b"5" and not name.endswith(b"/"):
                yield name, block if kind in b"07\0" and not sparse else None, size
            name, size, sparse = None, None, False


def _padded(size: int) -> int:
    """Bytes that a member's data takes up, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int | None:
    """A header's number: octal text, or base 256 where the first bit is set (GNU); None where it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip() or b"0"
    return int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else None


def _name(header: bytes) -> bytes:
    """The name in a member's own header."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (keyword, value) pairs of a pax header: lines "LENGTH KEYWORD=VALUE"; ends at the first that is broken."""
    start = 0
    while start < len(payload):
        digits = payload[start : start + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, separator, value = payload[start + len(digits) + 1 : start + max(length - 1, 0)].partition(b"=")
        if not separator:
            return
        yield keyword, value
        start += length
