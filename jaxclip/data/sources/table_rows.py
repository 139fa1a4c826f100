"""Rows of image paths, captions and labels in csv and JSON Lines files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from jaxclip.data.record import LARGEST_CAPTION, Skip
from jaxclip.errors import UserError
from jaxclip.io import printable

# Accepted column names, in order of preference; the case does not matter. They are those of open_clip's and Hugging
# Face's tables, of img2dataset, and of the tables that Flickr8k and Flickr30k are spread with.
_PATH_COLUMNS = (
    *("path", "filepath", "file", "image", "filename", "file_name", "image_path", "img_path", "filepaths"),
    *("image_file", "image_name", "img"),
)
_CAPTION_COLUMNS = ("caption", "title", "text", "captions", "txt", "sentence", "sentences", "description", "comment")
_LABEL_COLUMNS = ("label", "labels", "cls")
_SEPARATORS = ",\t;|"

# The csv module's default limit of 128 KiB per cell would end the reading of a table; here, too large a row is skipped.
_LARGEST_CELL = (1 << 31) - 1
_LARGEST_HEADER = 1 << 16  # bytes
_LARGEST_LINE = 2 * LARGEST_CAPTION  # bytes of a JSON object
_LONGEST_KEY = 4096
_MOST_LINES = 1000  # in a row; more mean that a quote was not closed

_URL = re.compile(r"https?://", re.IGNORECASE)
_DOWNLOAD = "download the images with img2dataset and use the .tar files that it writes"


class Row(NamedTuple):
    """One image of a table: its path as it is written, its captions, and its class index if there is one."""

    path: str
    captions: tuple[str, ...]
    label: int | None


class _Columns:
    """The columns of a table that are read, by their positions in its header."""

    def __init__(self, where: str, header: Sequence[str]):
        """Raises UserError if there is no column of paths, or neither one of captions nor one of labels."""
        self._where, self._header = where, header
        self._names = [name.strip().lower() for name in header]
        self.path = self._one_of(_PATH_COLUMNS)
        self.caption = self._first(_CAPTION_COLUMNS)
        self.label = self._first(_LABEL_COLUMNS)
        if self.caption is None and self.label is None:
            self._one_of(_CAPTION_COLUMNS)

    @staticmethod
    def fit(header: Sequence[str]) -> int:
        """How many of paths, captions and labels a header has a column for."""
        names = {name.strip().lower() for name in header}
        return sum(not names.isdisjoint(known) for known in (_PATH_COLUMNS, _CAPTION_COLUMNS, _LABEL_COLUMNS))

    def _first(self, names: tuple[str, ...]) -> int | None:
        return next((self._names.index(name) for name in names if name in self._names), None)

    def _one_of(self, names: tuple[str, ...]) -> int:
        place = self._first(names)
        if place is None:
            found = printable(", ".join(self._header[:20]), 500) or "none"
            advice = f"; if the images have not been downloaded yet, {_DOWNLOAD}" if "url" in self._names else ""
            raise UserError(f"{self._where} has no column {' or '.join(names[:5])}: found {found}{advice}")
        return place


def csv_rows(file: BinaryIO, path: str) -> Iterator[Row | Skip]:
    """The rows of a table with a header row; separated by commas, tabs, semicolons or bars, whichever fit its header.

    Args:
      file: its content.
      path: of it, for messages.

    Raises:
      UserError: it is not a table, lacks a column, a label is not a class index, or an image is given as a url.
    """
    csv.field_size_limit(_LARGEST_CELL)
    beginning = file.read(2)
    file.seek(0)
    # Spreadsheet programs start a csv with a byte order mark, which would become part of a column name.
    encoding = "utf-16" if beginning in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with io.TextIOWrapper(file, encoding, errors="replace", newline="") as text:
        first = text.readline(_LARGEST_HEADER)
        headers = {separator: next(csv.reader([first], delimiter=separator), []) for separator in _SEPARATORS}
        # The first of those that fit best.
        separator = max(_SEPARATORS, key=lambda separator: _Columns.fit(headers[separator]))
        columns = _Columns(f"{path}, in its first row,", headers[separator])
        width = len(headers[separator])
        rows = csv.reader(text, delimiter=separator, skipinitialspace=True)
        line = 1
        try:
            for fields in rows:
                begin, line = line + 1, rows.line_num + 1
                if line - begin >= _MOST_LINES:
                    raise UserError(f"{path}, line {begin}: a quoted field extends to line {line}; close its quote")
                if not fields:
                    continue  # an empty line
                fields += [""] * (width - len(fields))
                name = fields[columns.path].strip()
                if len(fields) > width:
                    yield Skip("too many fields", name[:_LONGEST_KEY])
                    continue
                caption = "" if columns.caption is None else fields[columns.caption].strip()
                label = None if columns.label is None else fields[columns.label].strip()
                yield _row(f"{path}, line {line}", name, [caption], label)
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num + 1}: {error}") from error


def json_rows(file: BinaryIO, path: str) -> Iterator[Row | Skip]:
    """The rows of a file with a JSON object on each line, which has the columns as its keys.

    A caption may be a string or a list of strings. A line that is no object of a path and a caption or label is
    skipped.

    Args:
      file: its content.
      path: of it, for messages.

    Raises:
      UserError: the first object lacks a key, a label is not a class index, or an image is given as a url.
    """
    columns, keys = None, []
    number = 0
    while line := file.readline(_LARGEST_LINE):
        number += 1
        where = f"{path}, line {number}"
        if len(line) == _LARGEST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_LARGEST_LINE)
            yield Skip("caption too large", f"line {number}")
            continue
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8-sig", errors="replace"))
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            yield Skip("not a JSON object", f"line {number}")
            continue
        if columns is None:
            keys = list(fields)
            columns = _Columns(where, keys)
        name = fields.get(keys[columns.path])
        if not isinstance(name, str):
            yield Skip("no image path", f"line {number}")
            continue
        given = None if columns.caption is None else fields.get(keys[columns.caption])
        captions = [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
        label = None if columns.label is None else fields.get(keys[columns.label])
        yield _row(where, name.strip(), captions, None if label is None else str(label))


def refuse_url(where: str, name: str) -> None:
    """Raises UserError if an image is given as the address of a web page."""
    if _URL.match(name):
        raise UserError(f"{where}: the image {name[:80]!r} is a url; {_DOWNLOAD}")


def _row(where: str, name: str, captions: Sequence[str], label: str | None) -> Row | Skip:
    if label and not (label.isdecimal() and len(label) < 10):
        raise UserError(f"{where}: the label {label[:80]!r} is not a class index; write 0, 1, ...")
    refuse_url(where, name)
    if any(len(caption) > LARGEST_CAPTION for caption in captions):
        return Skip("caption too large", name[:_LONGEST_KEY])
    # JSON may contain a lone surrogate, which no tokenizer accepts: it becomes "?".
    texts = (caption.encode("utf-8", errors="replace").decode().strip() for caption in captions)
    return Row(name, tuple(text for text in texts if text), int(label) if label else None)
