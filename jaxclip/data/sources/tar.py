"""Source that reads webdataset tar shards, local or remote, through an index and without extraction."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.data.index.tar_build import load_index
from jaxclip.data.index.tar_scan import IMAGE_EXTENSIONS
from jaxclip.data.index.tar_walk import BLOCK
from jaxclip.data.record import LARGEST_CAPTION, LARGEST_IMAGE, Question, Record, Skip, clean_captions
from jaxclip.data.sources import questions
from jaxclip.data.storage import Files, is_remote, list_files
from jaxclip.errors import UserError
from jaxclip.io import printable

_log = logging.getLogger(__name__)

_JSON_FIELDS = ("caption", "text", "captions")
_LARGEST_LABEL = 1 << 10  # digits and space; more is no label
_MOST_WARNINGS = 20  # on single shards
_NAME_PROBES = 4  # records in which names of labels are looked for
_PROBES = 64  # records checked for captions before shards whose only texts are .json are rejected


class TarShards:
    """The records of webdataset shards, in the order of the shards and of the members within each.

    Members whose names agree up to the first dot of the basename form one record. Its image is the member .jpg, .jpeg,
    .png or .webp; a pair of images are .0.png and .1.png, or .img0.png and .img1.png. Its caption is the member .txt,
    or else the field `caption`, `text` or `captions` (a list) of .json, which may also have `questions` and `items`
    (`questions.from_json`). Its label is the member .cls, an integer as text. Of several images, captions or labels the
    last is used.

    Records without an image are left out. A warning per kind reports what was left out or unreadable while indexing.

    Attributes:
      class_names: as given; otherwise, of the labels of `items` if a record at the beginning gives them by name.
      chunk_ends: see `Source`; None if all shards are local.
    """

    def __init__(self, pattern: str, class_names: Sequence[str] = ()):
        """Opens the shards, indexing them if there is no valid index yet.

        Args:
          pattern: one path, a glob (`data/*.tar`) or a numeric range (`data/{00000..00099}.tar`), local or remote.
          class_names: the names that labels index; empty if unknown.

        Raises:
          UserError: a shard is missing or is not a tar; the shards contain no members, no images, or neither captions
            nor questions nor labels; the name of a label is not known.
        """
        self.pattern = pattern
        self._files = Files(list_files(pattern))
        self._index = load_index(self._files)
        self.chunk_ends = self._index.chunk_ends if any(is_remote(file.path) for file in self._files) else None
        self.class_names = class_names or self._class_names()
        self._check()
        self._report()

    def __len__(self) -> int:
        return len(self._index)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each that cannot be used.

        It is unreadable, has no caption, question or label, or one of its `items` has a label of an unknown name.
        """
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        row = self._index.row(index)
        key = f"{self._files[row.shard].name}:{printable(row.name)}"
        # Sizes come from the headers, which may be malicious: check them before reading or allocating.
        if max(row.image[1], row.second_image[1]) > LARGEST_IMAGE:
            return Skip("image file too large", key)
        if row.caption[1] > LARGEST_CAPTION:
            return Skip("caption too large", key)
        try:
            captions, asked = _texts(self._member(row.shard, row.caption), is_json=row.json_caption)
            label = _label(self._member(row.shard, row.label)) if row.label[1] <= _LARGEST_LABEL else None
            if not captions and not asked and label is None:
                return Skip("no caption", key)
            image, second = self._member(row.shard, row.image), self._member(row.shard, row.second_image)
            return Record(image, captions, key, label, more_images=(second,) if second else (), questions=asked)
        except questions.UnknownLabelError:
            return Skip("unknown name of a label", key)
        except OSError:
            return Skip("unreadable shard", key)

    def _member(self, shard: int, place: tuple[int, int]) -> bytes:
        """The content of a member; empty if there is none."""
        block, size = place
        return self._files.read(shard, block * BLOCK, size) if block else b""

    def _report(self) -> None:
        """Logs which content of the shards is not used."""
        facts = self._index.facts
        for number, flaw, members in facts.flaws[:_MOST_WARNINGS]:
            path = self._files[number].path
            if flaw:
                _log.warning("%s %s: only the %d complete members before that are used", path, flaw, members)
            else:
                _log.warning("%s is an empty tar", path)
        if len(facts.flaws) > _MOST_WARNINGS:
            more = len(facts.flaws) - _MOST_WARNINGS
            _log.warning("%s: %d more shards are empty, truncated or damaged", self.pattern, more)
        if facts.without_image:
            _log.warning("%s: %d records without an image are left out", self.pattern, facts.without_image)
        if facts.repeated:
            _log.warning(
                "%s: %d members are lost, because a later one has the same name up to its first dot, such as %s; "
                "give every record a name of its own",
                *(self.pattern, facts.repeated, facts.repeated_example),
            )
        if facts.dotted:
            _log.warning(
                "%s: %d images are lost, because a record's name ends at the first dot and theirs have another, such "
                "as %s; rename them",
                *(self.pattern, facts.dotted, facts.dotted_example),
            )
        if facts.irregular:
            _log.warning("%s: %d links, devices or sparse files are ignored", self.pattern, facts.irregular)

    def _class_names(self) -> Sequence[str]:
        """The names of the classes that the first items with labels are given in; raises UserError for other names."""
        for index in range(min(_NAME_PROBES, len(self))):
            row = self._index.row(index)
            if not row.json_caption or row.caption[1] > LARGEST_CAPTION:
                continue
            try:
                fields = _json(self._member(row.shard, row.caption))
                questions.from_json(fields)
            except OSError:
                continue
            except questions.UnknownLabelError as error:
                name, known = printable(str(error), 80), ", ".join((*questions.ENTAILMENT, *questions.TRUTH))
                raise UserError(
                    f"{self.pattern}: the label {name!r} of an item in {printable(row.name)}.json is none of {known}; "
                    "write the index of the class, 0, 1, ..."
                ) from None
            if names := questions.class_names(fields):
                return names
        return ()

    def _check(self) -> None:
        """Raises UserError if the shards contain no usable record."""
        facts = self._index.facts
        if not facts.members:
            flaw = next((flaw for _, flaw, _ in facts.flaws if flaw), "is an empty tar")
            raise UserError(f"{self.pattern} {flaw}: it has no members; check the path")
        extensions = ", ".join(facts.extensions)
        if not len(self):
            accepted = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise UserError(f"{self.pattern}: no record has an image: found {extensions}, looked for {accepted}")
        if facts.has_text_or_label:
            return
        probes = np.unique(np.linspace(0, len(self) - 1, num=_PROBES, dtype=np.int64)).tolist()
        if not any(isinstance(self._record(index), Record) for index in probes):
            raise UserError(
                f"{self.pattern}: no record has a caption or a class label: found {extensions}, "
                f"looked for .txt, .json (with a field {', '.join(_JSON_FIELDS)}, questions, items) and .cls"
            )


def _texts(data: bytes, *, is_json: bool) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    """The captions and questions in a .txt or .json member; empty if there are none or the member is missing.

    Raises:
      UnknownLabelError: as `questions.from_json`.
    """
    if not is_json:
        return clean_captions([data]), ()
    fields = _json(data)
    return _captions(fields), questions.from_json(fields)


def _json(data: bytes) -> dict[str, Any]:
    """The object of a .json member; empty if it is none."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _captions(fields: dict[str, Any]) -> tuple[str, ...]:
    """The captions of a JSON object; empty if there are none."""
    for name in _JSON_FIELDS:
        values = fields.get(name)
        texts = [text for text in (values if isinstance(values, list) else [values]) if isinstance(text, str)]
        # JSON may contain a lone surrogate, which no tokenizer accepts: it becomes "?".
        texts = [text.encode("utf-8", errors="replace").decode().strip() for text in texts]
        if any(texts):
            return tuple(text for text in texts if text)
    return ()


def _label(data: bytes) -> int | None:
    """The class index in a .cls member; None if it is invalid or the member is missing."""
    digits = data.strip()
    return int(digits) if digits.isdigit() and len(digits) < 10 else None
