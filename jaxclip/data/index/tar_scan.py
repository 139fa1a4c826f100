"""The records of one tar: which of its members belong together, and where they lie."""

from __future__ import annotations

import array

import numpy as np

from jaxclip.data.index.tar import NAMED_EXTENSIONS, ROW, Facts, Part
from jaxclip.data.index.tar_walk import BLOCK, FlawError, walk
from jaxclip.data.storage import REMOTE_BLOCK, Files
from jaxclip.io import printable

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# Which of a record's four places a member takes.
_PLACES = {b"txt": 1, b"json": 2, b"cls": 3} | dict.fromkeys((name.encode() for name in IMAGE_EXTENSIONS), 0)

_LONGEST_EXTENSION = 20  # so much is remembered for messages
# What is held in memory of one tar is bounded, whatever its size.
_MOST_RECORDS = 1 << 23
_MOST_NAMES = 1 << 30  # bytes

# Records of remote files are best read so many bytes at a time. The blocks that are fetched for them begin and end
# within records, so of each chunk up to one block is fetched in vain.
_CHUNK = 4 * REMOTE_BLOCK


def scan(files: Files, number: int) -> Part:
    """Indexes a tar by reading its headers only.

    Members that share a name up to the first dot of its last part are one record (webdataset's rule), wherever they
    stand in the tar. Of a tar that is cut or damaged, the whole members before the flaw are indexed.

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
    """Neighboring members that share a name, 50 bytes and the name for each run; most records are one run."""

    def __init__(self) -> None:
        self._name = b""
        self._places = array.array("I")  # first block and size for each of the four places
        self._hashes = array.array("q")
        self._names = bytearray()
        self._name_ends = array.array("q")

    def add(self, name: bytes, place: int | None, block: int, size: int) -> None:
        """Adds a member; the place is None where it is none of those looked for."""
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
        """The rows and names of the records with an image, and how many there are without."""
        # Runs with the same name are one record. Names are compared by their 64-bit hashes: of 8 million names, two
        # agree by accident with a probability of 2e-6.
        run_places = np.frombuffer(self._places, np.uint32).reshape(-1, 4, 2)
        _, first, record = np.unique(np.frombuffer(self._hashes, np.int64), return_index=True, return_inverse=True)
        first_runs = np.sort(first)
        record = np.searchsorted(first_runs, first[record])
        places = np.zeros((len(first_runs), 4, 2), np.uint32)
        for place in range(4):
            there = np.flatnonzero(run_places[:, place, 0])
            places[record[there], place] = run_places[there, place]  # of several the last one counts
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
    """As `Source.chunk_ends`: neighboring records whose images begin in the same part of the tar are a chunk."""
    chunks = rows["places"][:, 0, 0] // (_CHUNK // BLOCK)
    return np.flatnonzero(np.diff(chunks.astype(np.int64), append=-1)) + 1
