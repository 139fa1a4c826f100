"""Records of one tar: the grouping of its members by name, and their places."""

from __future__ import annotations

import array

import numpy as np

from jaxclip.data.index.tar import NAMED_EXTENSIONS, ROW, Facts, Part
from jaxclip.data.index.tar_walk import BLOCK, FlawError, walk
from jaxclip.data.storage import REMOTE_BLOCK, Files
from jaxclip.io import printable

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# The place of a member among the five of a record, by extension. A pair of images is KEY.0.png and KEY.1.png, or
# KEY.img0.png and KEY.img1.png.
_IMAGE, _SECOND_IMAGE = 0, 4
_NUM_PLACES = 5
_NUMBERED = {"0.": _IMAGE, "img0.": _IMAGE, "1.": _SECOND_IMAGE, "img1.": _SECOND_IMAGE}
_PLACES = {b"txt": 1, b"json": 2, b"cls": 3} | {
    f"{number}{name}".encode(): place
    for number, place in {"": _IMAGE, **_NUMBERED}.items()
    for name in IMAGE_EXTENSIONS
}

_LONGEST_EXTENSION = 20  # characters kept for messages
# These bound the memory for one tar, whatever its size.
_MOST_RECORDS = 1 << 23
_MOST_NAMES = 1 << 30  # bytes
_MOST_DOTTED = 1 << 16  # records

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
                place = _PLACES.get(suffix)
                runs.add(folder + slash + stem, place, block, size)
                if place is None and _PLACES.get(suffix.rpartition(b".")[2]) == _IMAGE:
                    runs.add_dotted(name)
            members += 1
    except FlawError as error:
        flaw = str(error)
    rows, names, without_image = runs.records()
    repeated, repeated_example = runs.repeated()
    dotted, dotted_example = runs.dotted()
    return Part(
        facts=Facts(
            members=members,
            without_image=without_image,
            irregular=irregular,
            repeated=repeated,
            repeated_example=printable(repeated_example),
            dotted=dotted,
            dotted_example=printable(dotted_example),
            has_text_or_label=_has_text_or_label(rows),
            extensions=tuple(printable(extension) or "(none)" for extension in extensions),
            flaws=((0, flaw, members),) if flaw or not members else (),
        ),
        rows=rows,
        names=names,
        chunk_ends=_chunk_ends(rows),
    )


class _Runs:
    """Runs of adjacent members with the same name, 58 bytes and the name per run; most records are one run."""

    def __init__(self) -> None:
        self._name = b""
        self._places = array.array("I")  # first block and size for each of the places
        self._hashes = array.array("q")
        self._names = bytearray()
        self._name_ends = array.array("q")
        self._repeated, self._repeated_example = 0, b""  # within a run
        self._dotted: dict[int, tuple[int, bytes]] = {}  # by hash: their number and the name of one

    def add(self, name: bytes, place: int | None, block: int, size: int) -> None:
        """Adds a member; `place` is None if its extension is not used."""
        if name != self._name:
            if len(self._hashes) >= _MOST_RECORDS or len(self._names) >= _MOST_NAMES:
                raise FlawError("has too many members")
            self._name = name
            self._places.extend((0,) * 2 * _NUM_PLACES)
            self._hashes.append(hash(name))
            self._names += name
            self._name_ends.append(len(self._names))
        if place is not None:
            at = 2 * (place - _NUM_PLACES)
            if self._places[at]:
                self._repeated, self._repeated_example = self._repeated + 1, self._repeated_example or name
            self._places[at], self._places[at + 1] = block, size

    def add_dotted(self, name: bytes) -> None:
        """Counts a member that was added last and would be an image if its name had no dot but the last."""
        key = self._hashes[-1]
        number, example = self._dotted.get(key, (0, name))
        if number or len(self._dotted) < _MOST_DOTTED:
            self._dotted[key] = number + 1, example

    def dotted(self) -> tuple[int, bytes]:
        """The number of images with further dots in their names whose record has no other, and the name of one."""
        places = np.frombuffer(self._places, np.uint32).reshape(-1, _NUM_PLACES, 2)
        hashes = np.frombuffer(self._hashes, np.int64)
        with_image = set(hashes[places[:, _IMAGE, 0] > 0].tolist()) if self._dotted else set()
        lost = [found for key, found in self._dotted.items() if key not in with_image]
        return sum(number for number, _ in lost), lost[0][1] if lost else b""

    def repeated(self) -> tuple[int, bytes]:
        """The number of members in whose place a later one of their record is used, and the name of such a record."""
        number, example = self._repeated, self._repeated_example
        places = np.frombuffer(self._places, np.uint32).reshape(-1, _NUM_PLACES, 2)
        hashes = np.frombuffer(self._hashes, np.int64)
        for place in range(_NUM_PLACES):
            there = np.flatnonzero(places[:, place, 0])
            _, first = np.unique(hashes[there], return_index=True)
            again = np.delete(there, first)
            number += len(again)
            if len(again) and not example:
                start = self._name_ends[again[0] - 1]  # the first run is never one again
                example = bytes(self._names[start : self._name_ends[again[0]]])
        return number, example

    def records(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The rows and names of the records with an image, and the number of records without."""
        # Runs with the same name form one record. Names are compared by 64-bit hashes: among 8 million names, two
        # collide with a probability of 2e-6.
        run_places = np.frombuffer(self._places, np.uint32).reshape(-1, _NUM_PLACES, 2)
        _, first, record = np.unique(np.frombuffer(self._hashes, np.int64), return_index=True, return_inverse=True)
        first_runs = np.sort(first)
        record = np.searchsorted(first_runs, first[record])
        places = np.zeros((len(first_runs), _NUM_PLACES, 2), np.uint32)
        for place in range(_NUM_PLACES):
            there = np.flatnonzero(run_places[:, place, 0])
            places[record[there], place] = run_places[there, place]  # the last of several is used
        whole = places[:, _IMAGE, 0] > 0
        places = places[whole]

        ends = np.frombuffer(self._name_ends, np.int64)
        lengths = ends - np.concatenate([[0], ends[:-1]])
        kept = np.zeros(len(lengths), bool)
        kept[first_runs[whole]] = True
        rows = np.zeros(len(places), ROW)
        rows["json_caption"] = (places[:, 1, 0] == 0) & (places[:, 2, 0] > 0)
        rows["places"] = places[:, (_IMAGE, 1, 3, _SECOND_IMAGE)]
        rows["places"][rows["json_caption"], 1] = places[rows["json_caption"], 2]
        rows["name_end"] = np.cumsum(lengths[kept])
        return rows, np.frombuffer(self._names, np.uint8)[np.repeat(kept, lengths)], len(whole) - len(rows)


def _has_text_or_label(rows: np.ndarray) -> bool:
    _, caption, label, _ = (rows["places"][:, :, 0] > 0).T
    return bool(np.any(label | (caption & ~rows["json_caption"])))


def _chunk_ends(rows: np.ndarray) -> np.ndarray:
    """As `Source.chunk_ends`: adjacent records whose images begin in the same part of the tar form a chunk."""
    chunks = rows["places"][:, 0, 0] // (_CHUNK // BLOCK)
    return np.flatnonzero(np.diff(chunks.astype(np.int64), append=-1)) + 1
