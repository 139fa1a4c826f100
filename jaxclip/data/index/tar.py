"""Index of a set of tars: one file of columns with checksums, of which only the needed bytes are held in memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.data.index.checked import Content, Writer, open_checked

_FORMAT = 5  # a kept index of another format is built again
_MAGIC = b"jaxclip tar index\n"

# A record: for its image, caption, label and second image the member's first block of 512 bytes and its size in bytes,
# (0, 0) if it has none (block 0 is always a header); the end of its name among those of its tar; whether the caption is
# json.
ROW = np.dtype([("places", "<u4", (4, 2)), ("name_end", "<u4"), ("json_caption", "?")])
_ROW = struct.Struct("<9I?")
_ROW_AND_THE_ONE_BEFORE = struct.Struct("<32xIx9I?")

NAMED_EXTENSIONS = 12  # the number of extensions kept for messages


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about tars that messages need without reading the records.

    Attributes:
      members: the number of regular files in the tars.
      without_image: the number of records that were left out because they have no image.
      irregular: the number of links, devices and sparse files that were skipped.
      repeated: the number of images, captions and labels that are not used, because a later one of the same record is.
      repeated_example: the name of a record that has them.
      dotted: the number of images that are not used, because their names have more than one dot and their records no
        other image.
      dotted_example: the name of one.
      has_text_or_label: whether any record has a .txt or a .cls member.
      extensions: the first few extensions found.
      flaws: for each tar that is damaged or empty: its number, the flaw as text that follows its path in a message
        (nothing if it is empty), and the number of members before the flaw.
    """

    members: int = 0
    without_image: int = 0
    irregular: int = 0
    repeated: int = 0
    repeated_example: str = ""
    dotted: int = 0
    dotted_example: str = ""
    has_text_or_label: bool = False
    extensions: tuple[str, ...] = ()
    flaws: tuple[tuple[int, str, int], ...] = ()

    @staticmethod
    def of(parts: Sequence[Facts]) -> Facts:
        """Combines the facts about single tars."""
        return Facts(
            members=sum(part.members for part in parts),
            without_image=sum(part.without_image for part in parts),
            irregular=sum(part.irregular for part in parts),
            repeated=sum(part.repeated for part in parts),
            repeated_example=next((part.repeated_example for part in parts if part.repeated), ""),
            dotted=sum(part.dotted for part in parts),
            dotted_example=next((part.dotted_example for part in parts if part.dotted), ""),
            has_text_or_label=any(part.has_text_or_label for part in parts),
            extensions=tuple(sorted({name for part in parts for name in part.extensions})[:NAMED_EXTENSIONS]),
            flaws=tuple(
                (number, flaw, members) for number, part in enumerate(parts) for _, flaw, members in part.flaws
            ),
        )

    @staticmethod
    def from_json(fields: dict) -> Facts:
        """Restores facts from parsed JSON; raises TypeError, KeyError or ValueError if the fields are invalid."""
        flaws = tuple((int(number), str(flaw), int(members)) for number, flaw, members in fields.pop("flaws"))
        return Facts(**fields | {"flaws": flaws, "extensions": tuple(map(str, fields["extensions"]))})


@dataclasses.dataclass(frozen=True)
class Part:
    """The index of one tar.

    Attributes:
      facts: facts about the tar.
      rows: ROW [records].
      names: uint8 [bytes], the concatenated names of the records.
      chunk_ends: int64 [chunks], as `Source.chunk_ends`.
    """

    facts: Facts
    rows: np.ndarray
    names: np.ndarray
    chunk_ends: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of records, bytes of names and chunks."""
        return len(self.rows), len(self.names), len(self.chunk_ends)


class Row(NamedTuple):
    """The place of one record: the number of its tar, its name, and (block, size) of its members, (0, 0) for none."""

    shard: int
    name: bytes
    image: tuple[int, int]
    caption: tuple[int, int]
    label: tuple[int, int]
    second_image: tuple[int, int]
    json_caption: bool


class TarIndex:
    """The index of a set of tars, read from the content that `write` wrote.

    The content is one line of JSON, int64 ends [3, shards] of each tar's records, names and chunks, chunk_ends,
    ROW [records], and names, in this order.

    Attributes:
      facts: facts about all the tars.
      record_ends: int64 [shards], the cumulative number of records at the end of each tar.
    """

    def __init__(self, content: Content):
        """Reads the head; raises ValueError if the content is no index of this format."""
        self._content = content
        start = len(_MAGIC) + 8
        head = content.read(0, min(start, content.size))
        if not head.startswith(_MAGIC):
            raise ValueError("no index")
        length = int.from_bytes(head[len(_MAGIC) :], "little")
        if content.size < start + length:
            raise ValueError("a cut index")
        try:
            fields = json.loads(content.read(start, length))
            shards = int(fields.pop("shards"))
            if fields.pop("format") != _FORMAT or shards < 1:
                raise ValueError("an index of another format")
            self.facts = Facts.from_json(fields)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("no index") from error
        start += length
        if content.size < start + 24 * shards:
            raise ValueError("a cut index")
        ends = np.frombuffer(content.read(start, 24 * shards), "<i8").reshape(3, shards)
        self.record_ends, self._name_ends, _ = ends
        records, names, self._chunks = ends[:, -1].tolist()
        self._chunk_ends = start + ends.nbytes
        self._rows = self._chunk_ends + 8 * self._chunks
        self._names = self._rows + ROW.itemsize * records
        if content.size != self._names + names:
            raise ValueError("a cut index")

    @staticmethod
    def open(place: pathlib.Path, shards: int, *, whole: bool = False) -> TarIndex | None:
        """The index in a file; None if it is missing, damaged, or not of `shards` tars.

        Args:
          place: path of the file.
          shards: the number of tars.
          whole: as in `CheckedFile`.
        """
        index = open_checked(place, TarIndex, whole=whole)
        return index if index is not None and len(index.record_ends) == shards else None

    @functools.cached_property
    def chunk_ends(self) -> np.ndarray:
        """int64 [chunks], as `Source.chunk_ends`; raises UserError if the file is damaged."""
        return np.frombuffer(self._content.read(self._chunk_ends, 8 * self._chunks), "<i8")

    def __len__(self) -> int:
        return int(self.record_ends[-1])

    def row(self, record: int) -> Row:
        """The place of a record, 0 <= record < len(index); raises UserError if the file is damaged."""
        shard = int(np.searchsorted(self.record_ends, record, side="right"))
        first = int(self.record_ends[shard - 1]) if shard else 0
        place, name_start = self._rows + ROW.itemsize * record, 0
        if record > first:
            data = self._content.read(place - ROW.itemsize, 2 * ROW.itemsize)
            name_start, *places, name_end, json_caption = _ROW_AND_THE_ONE_BEFORE.unpack(data)
        else:
            *places, name_end, json_caption = _ROW.unpack(self._content.read(place, ROW.itemsize))
        names = self._names + (int(self._name_ends[shard - 1]) if shard else 0)
        name = self._content.read(names + name_start, name_end - name_start)
        image, caption, label, second_image = zip(places[::2], places[1::2], strict=True)
        return Row(shard, name, image, caption, label, second_image, json_caption)

    def part(self) -> Part:
        """The complete content of an index of one tar."""
        records, names = len(self), int(self._name_ends[-1])
        rows = np.frombuffer(self._content.read(self._rows, ROW.itemsize * records), ROW)
        return Part(self.facts, rows, np.frombuffer(self._content.read(self._names, names), np.uint8), self.chunk_ends)


def write(file: Writer, facts: Sequence[Facts], sizes: np.ndarray, parts: Iterable[Part]) -> None:
    """Writes the index of several tars into an empty file.

    Args:
      file: the file to write to.
      facts: facts about each tar.
      sizes: int64 [shards, 3], the `Part.sizes` of each part.
      parts: the parts in order; one is held in memory at a time.

    Raises:
      OSError: the file cannot be written.
      ValueError: a part does not have the given sizes.
    """
    write_head(file, facts, sizes)
    places = column_places(file.tell(), sizes)
    for part, size, place in zip(parts, sizes.tolist(), places, strict=True):
        if part.sizes != tuple(size):
            raise ValueError("a part is not what it was")
        write_part(file, part, place)


def write_head(file: Writer, facts: Sequence[Facts], sizes: np.ndarray) -> None:
    """Writes the part of the file before the columns; arguments as in `write`."""
    fields = {"format": _FORMAT, "shards": len(facts)} | dataclasses.asdict(Facts.of(facts))
    line = json.dumps(fields).encode()
    line += b" " * (-(len(_MAGIC) + 8 + len(line) + 1) % 64) + b"\n"
    ends = np.cumsum(sizes, axis=0)
    file.write(_MAGIC + len(line).to_bytes(8, "little") + line + ends.T.astype("<i8").tobytes())


def column_places(start: int, sizes: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """For each tar, its first record and the offsets in the file of its chunk ends, rows and names.

    Args:
      start: the offset of the columns.
      sizes: as in `write`.
    """
    records, names, chunks = np.concatenate([[[0, 0, 0]], np.cumsum(sizes, axis=0)]).T
    row_column = start + 8 * chunks[-1]
    name_column = row_column + ROW.itemsize * records[-1]
    places = np.stack([records, start + 8 * chunks, row_column + ROW.itemsize * records, name_column + names], axis=1)
    return map(tuple, places[:-1].tolist())


def write_part(file: Writer, part: Part, place: tuple[int, int, int, int]) -> None:
    """Writes the columns of one tar at a place from `column_places`."""
    first, chunk_place, row_place, name_place = place
    chunk_ends = (part.chunk_ends + first).astype("<i8")
    for start, column in ((chunk_place, chunk_ends), (row_place, part.rows), (name_place, part.names)):
        file.seek(start)
        file.write(column.tobytes())
