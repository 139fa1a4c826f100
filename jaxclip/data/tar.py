"""Webdataset tar shards as a source: indexed once, read by position, never extracted."""

from __future__ import annotations

import bisect
import concurrent.futures
import functools
import glob
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxclip.data.sources import Record, Skip
from jaxclip.data.tar_index import BLOCK, IMAGE_EXTENSIONS, load_index
from jaxclip.errors import UserError

_log = logging.getLogger(__name__)

_JSON_FIELDS = ("caption", "text", "captions")
_OPEN_FILES = 128  # kept open between reads; the usual limit for a process is 1024
_PROBES = 64  # records looked into before shards whose only texts are .json are called caption-less


class TarShards:
    """The records of webdataset shards, in the order of the shards and of the members within each.

    Members whose names agree up to the first dot of the basename are one record. Its picture is the member .jpg, .jpeg,
    .png or .webp; its caption the member .txt, or else the field `caption`, `text` or `captions` (a list) of .json; its
    label the member .cls, an integer as text. Of two pictures under one name the last counts.

    Records without a picture are left out. What was left out or could not be read while indexing is logged as a
    warning, one line for each kind.
    """

    class_names: Sequence[str] = ()
    chunk_ends = None

    def __init__(self, pattern: str):
        """Opens the shards, indexing those that have no valid index yet.

        Args:
          pattern: one path, a glob (`data/*.tar`) or a numeric range (`data/{00000..00099}.tar`).

        Raises:
          UserError: a shard is missing or is not a tar, or in all the shards together there is no member, no picture,
            or neither a caption nor a label.
        """
        self.pattern = pattern
        self.paths = _expand(pattern)
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            self._shards = list(pool.map(load_index, self.paths))
        self._ends = np.cumsum([len(shard) for shard in self._shards]).tolist()
        self._file = functools.lru_cache(maxsize=_OPEN_FILES)(_File)
        self._check()
        self._report()

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, in their order; a `Skip` where one cannot be read or has no caption and no label."""
        return [self._record(index) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        number = bisect.bisect_right(self._ends, index)
        shard, row = self._shards[number], index - (self._ends[number - 1] if number else 0)
        key = f"{self.paths[number].name}:{shard.key(row)}"
        image, caption, label = shard.places[row].tolist()
        try:
            file = self._file(self.paths[number])
            picture = file.read(*image)
            captions = _captions(file.read(*caption), is_json=shard.json_captions[row]) if caption[0] else ()
            class_index = _label(file.read(*label)) if label[0] else None
        except OSError:
            return Skip("unreadable shard", key)
        if not captions and class_index is None:
            return Skip("no caption", key)
        return Record(picture, captions, key, class_index)

    def _report(self) -> None:
        """Logs what the shards hold that is not among the records."""
        for path, shard in zip(self.paths, self._shards, strict=True):
            if shard.flaw:
                _log.warning("%s %s: only the %d whole members before are used", path, shard.flaw, shard.members)
            elif not shard.members:
                _log.warning("%s is an empty tar", path)
        pictureless = sum(shard.pictureless for shard in self._shards)
        if pictureless:
            _log.warning("%s: %d records without a picture are left out", self.pattern, pictureless)
        irregular = sum(shard.irregular for shard in self._shards)
        if irregular:
            _log.warning("%s: %d links, devices or sparse files are ignored", self.pattern, irregular)

    def _check(self) -> None:
        """Raises where the shards hold nothing to train on."""
        if not any(shard.members for shard in self._shards):
            flaw = next((shard.flaw for shard in self._shards if shard.flaw), "is an empty tar")
            raise UserError(f"{self.pattern} {flaw}: it has no members, choose another file")
        found = ", ".join(sorted({extension for shard in self._shards for extension in shard.extensions}))
        if not len(self):
            wanted = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise UserError(f"{self.pattern}: no record has a picture: found {found}, looked for {wanted}")
        if any(shard.has_text_or_label for shard in self._shards):
            return
        probes = np.unique(np.linspace(0, len(self) - 1, num=_PROBES, dtype=np.int64)).tolist()
        if not any(isinstance(record, Record) for record in self.read(probes)):
            raise UserError(
                f"{self.pattern}: no record has a caption or a class label: found {found}, "
                f"looked for .txt, .json (with a field {', '.join(_JSON_FIELDS)}) and .cls"
            )


class _File:
    """A file open for reading by position.

    It is closed when nobody holds it any more, so dropping it from the cache of open files never closes it under a
    reader in another thread.
    """

    def __init__(self, path: pathlib.Path):
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, block: int, size: int) -> bytes:
        """Exactly `size` bytes from the given block of 512; OSError where the file has become shorter."""
        data = os.pread(self._descriptor, size, block * BLOCK)
        if len(data) != size:
            raise OSError("the file is shorter than when it was indexed")
        return data

    def __del__(self):
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _expand(pattern: str) -> list[pathlib.Path]:
    """The existing files that a pattern names; raises UserError where there is none."""
    paths = []
    for text in _ranges(pattern):
        if pathlib.Path(text).is_file():  # before globbing: a name may hold brackets
            paths.append(pathlib.Path(text))
        elif glob.has_magic(text):
            paths.extend(pathlib.Path(path) for path in sorted(glob.glob(text)))
        else:
            within = f" (of {pattern})" if text != pattern else ""
            raise UserError(f"{text}{within} is not there or is no file: check the path")
    if not paths:
        raise UserError(f"{pattern} matches no file: check the path and the pattern")
    return paths


def _ranges(pattern: str) -> Iterator[str]:
    """Expands every {first..last}, keeping leading zeros; lazily, for a range may be mistyped to be huge."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        for rest in _ranges(pattern[match.end() :]):
            yield f"{pattern[: match.start()]}{number:0{len(first)}d}{rest}"


def _captions(data: bytes, *, is_json: bool) -> tuple[str, ...]:
    """The captions in a .txt or .json member; empty where it holds none."""
    if not is_json:
        text = data.decode("utf-8", errors="replace").strip()
        return (text,) if text else ()
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    for name in _JSON_FIELDS if isinstance(fields, dict) else ():
        values = fields.get(name)
        texts = [text for text in (values if isinstance(values, list) else [values]) if isinstance(text, str)]
        # Json may spell half a surrogate pair, which is no text that a tokenizer takes: it becomes "?".
        texts = [text.encode("utf-8", errors="replace").decode().strip() for text in texts]
        if any(texts):
            return tuple(text for text in texts if text)
    return ()


def _label(data: bytes) -> int | None:
    """The class index in a .cls member; None where it is none."""
    digits = data.strip()
    return int(digits) if digits.isdigit() and len(digits) < 10 else None
