"""Records of one tar: the grouping of its members by name, and their places."""

from __future__ import annotations

import array

import numpy as np

from jaxclip.data.index.tar import NAMED_EXTENSIONS, ROW, Facts, Part
from jaxclip.data.index.tar_walk import BLOCK, FlawError, walk
from jaxclip.data.storage import REMOTE_BLOCK, Files
from jaxclip.io import printable

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# The place of a member among the four of a record, by extension.
_PLACES = {b"txt": 1, b"json": 2, b"cls": 3} | dict.fromkeys((name.encode() for name in IMAGE_EXTENSIONS), 0)

_LONGEST_EXTENSION = 20  # characters kept for messages
# These bound the memory for one tar, whatever its size.
_MOST_RECORDS = 1 << 23
_MOST_NAMES = 1 << 30  # bytes

# The size in bytes of the chunks in which records of remote files are read. Fetched blocks begin and end within
# records, so up to one block per chunk is fetched without need.
_CHUNK = 4 * REMOTE_BLOCK


def scan(files: Files, number: int) -> Part:
    """Indexes a tar by reading its headers only.

    Members whose names agree up to the first dot of the basename form one record (webdataset's rule), wherever they are
    in the tar. If a tar is truncated or damaged, the complete members before the flaw are indexed.

    Raises:
      OSError: the file cannot be read.
      UserError: it is not a tar.
    """
    runs = _Runs()
    extensions: dict[bytes, None] = {}
    members = irregular = 0
    flaw = ""
    try:
        for name, block, size in walk(files, number):
            if block is None or size >= 1 << 32:
                irregular += 1
                continue
            folder, slash, base = name.rpartition(b"/")
            stem, dot, extension = base.partition(b".")
            suffix = extension.lower()
            if len(extensions) < NAMED_EXTENSIONS:
                extensions[dot + suffix[:_LONGEST_EXTENSION]] = None
            if stem and dot:
                runs.add(folder + slash + stem, _PLACES.get(suffix), block, size)
            members += 1
    except FlawError as error:
        flaw = str(error)
    rows, names, without_image = runs.records()
    return Part(
        facts=Facts(
            members=members,
            without_image=without_image,
            irregular=irregular,
            has_text_or_label=_has_text_or_label(rows),
            extensions=tuple(printable(extension) or "(none)" for extension in extensions),
            flaws=((0, flaw, members),) if flaw or not members else (),
        ),
        rows=rows,
        names=names,
        chunk_ends=_chunk_ends(rows),
    )


class _Runs:
    """Runs of adjacent members with the same name, 50 bytes and the name per run; most records are one run."""

    def __init__(self) -> None:
        self._name = b""
        self._places = array.array("I")  # first block and size for each of the four places
        self._hashes = array.array("q")
        self._names = bytearray()
        self._name_ends = array.array("q")

    def add(self, name: bytes, place: int | None, block: int, size: int) -> None:
        """Adds a member; `place` is None if its extension is not used."""
        if name != self._name:
            if len(self._hashes) >= _MOST_RECORDS or len(self._names) >= _MOST_NAMES:
                raise FlawError("has too many members")
            self._name = name
            self._places.extend((0,) * 8)
            self._hashes.append(hash(name))
            self._names += name
            self._name_ends.append(len(self._names))
        if place is not None:
            self._places[2 * place - 8], self._places[2 * place - 7] = block, size

    def records(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The rows and names of the records with an image, and the number of records without."""
        # Runs with the same name form one record. Names are compared by 64-bit hashes: among 8 million names, two
        # collide with a probability of 2e-6.
        run_places = np.frombuffer(self._places, np.uint32).reshape(-1, 4, 2)
        _, first, record = np.unique(np.frombuffer(self._hashes, np.int64), return_index=True, return_inverse=True)
        first_runs = np.sort(first)
        record = np.searchsorted(first_runs, first[record])
        places = np.zeros((len(first_runs), 4, 2), np.uint32)
        for place in range(4):
            there = np.flatnonzero(run_places[:, place, 0])
            places[record[there], place] = run_places[there, place]  # the last of several is used
        whole = places[:, 0, 0] > 0
        places = places[whole]

        ends = np.frombuffer(self._name_ends, np.int64)
        lengths = ends - np.concatenate([[0], ends[:-1]])
        kept = np.zeros(len(lengths), bool)
        kept[first_runs[whole]] = True
        rows = np.zeros(len(places), ROW)
        rows["json_caption"] = (places[:, 1, 0] == 0) & (places[:, 2, 0] > 0)
        rows["places"] = places[:, (0, 1, 3)]
        rows["places"][rows["json_caption"], 1] = places[rows["json_caption"], 2]
        rows["name_end"] = np.cumsum(lengths[kept])
        return rows, np.frombuffer(self._names, np.uint8)[np.repeat(kept, lengths)], len(whole) - len(rows)


def _has_text_or_label(rows: np.ndarray) -> bool:
    _, caption, label = (rows["places"][:, :, 0] > 0).T
    return bool(np.any(label | (caption & ~rows["json_caption"])))


def _chunk_ends(rows: np.ndarray) -> np.ndarray:
    """As `Source.chunk_ends`: adjacent records whose images begin in the same part of the tar form a chunk."""
    chunks = rows["places"][:, 0, 0] // (_CHUNK // BLOCK)
    return np.flatnonzero(np.diff(chunks.astype(np.int64), append=-1)) + 1
