"""Source that reads a csv or tsv table of image paths and captions."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxclip.data import storage
from jaxclip.data.record import LARGEST_CAPTION, Record, Skip
from jaxclip.data.sources.single_file import read_image
from jaxclip.errors import UserError

# Accepted column names, in order of preference; the case does not matter.
_PATH_COLUMNS = ("path", "filepath", "file", "image", "filename")
_CAPTION_COLUMNS = ("caption", "title", "text")
_LABEL_COLUMN = "label"

# The csv module's default limit of 128 KiB per cell would end the reading of a table; here, too large a row is skipped.
_LARGEST_CELL = (1 << 31) - 1
_LONGEST_KEY = 4096
_MOST_LINES = 1000  # in a row; more mean that a quote was not closed

_URL = re.compile(r"https?://", re.IGNORECASE)
_DOWNLOAD = "download the images with img2dataset and use the .tar files that it writes"


class _Row(NamedTuple):
    path: str
    caption: str
    label: int | None


class Table:
    """The rows of a csv (commas) or tsv (tabs) file with a header row, one record each.

    Required are a column of paths (path, filepath, file, image or filename) and one of captions (caption, title or
    text). A column `label` of class indices is optional. Quoted fields may contain separators and newlines. Paths are
    relative to the table's folder, absolute, or have a scheme (gs://bucket/a.jpg). Images are opened when they are
    read, not before.
    """

    class_names: Sequence[str] = ()
    chunk_ends = None

    def __init__(self, path: str):
        """Reads the table.

        Args:
          path: of the table, local or remote.

        Raises:
          UserError: the file is missing or not a table; it has no rows or lacks a column; a label is not a class index;
            images are given as http urls.
        """
        self.path = path
        self._name = path.rpartition("/")[2]
        self._folder = path.removesuffix(self._name)
        self._rows: list[_Row | Skip] = []
        csv.field_size_limit(_LARGEST_CELL)
        try:
            with (
                storage.filesystem(path).open(path, "rb") if storage.is_remote(path) else open(path, "rb") as content,
                # Spreadsheet programs start a csv with a byte order mark, which would become part of a column name.
                io.TextIOWrapper(content, "utf-8-sig", errors="replace", newline="") as file,
            ):
                rows = csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",")
                try:
                    self._load(rows)
                except csv.Error as error:
                    raise UserError(f"{path}, line {rows.line_num}: {error}") from error
        except UserError:
            raise
        except Exception as error:  # each storage library has errors of its own
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{path} cannot be read: {reason}") from error
        if not self._rows:
            raise UserError(f"{path} has no rows; write a header row and one row per image")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each without an image, or with neither caption nor label.

        A row with more fields than the header is skipped too: its caption contains an unquoted comma.
        """
        return [self._record(self._rows[index]) for index in ids]

    def _record(self, row: _Row | Skip) -> Record | Skip:
        if isinstance(row, Skip):
            return row
        key = self._key(row.path)
        if not row.caption and row.label is None:
            return Skip("no caption", key)
        remote = storage.is_remote(row.path)
        image = read_image(row.path if remote else os.path.join(self._folder, row.path), key)
        if isinstance(image, Skip):
            return image
        return Record(image, (row.caption,) if row.caption else (), key, row.label)

    def _key(self, path: str) -> str:
        return f"{self._name}:{path[:_LONGEST_KEY]}"

    def _load(self, rows) -> None:
        """Stores the path, caption and label of every row of a csv.reader."""
        header = [name.strip().lower() for name in next(rows, [])]
        path = self._column(header, _PATH_COLUMNS)
        caption = self._column(header, _CAPTION_COLUMNS)
        label = header.index(_LABEL_COLUMN) if _LABEL_COLUMN in header else None
        line = rows.line_num
        for fields in rows:
            first, line = line + 1, rows.line_num
            if line - first >= _MOST_LINES:
                raise UserError(f"{self.path}, line {first}: a quoted field extends to line {line}; close its quote")
            if not fields:
                continue  # an empty line
            fields += [""] * (len(header) - len(fields))
            if len(fields) > len(header):
                self._rows.append(Skip("too many fields", self._key(fields[path].strip())))
                continue
            digits = "" if label is None else fields[label].strip()
            if digits and not (digits.isdecimal() and len(digits) < 10):
                raise UserError(
                    f"{self.path}, line {rows.line_num}: the label {digits!r} is not a class index; write 0, 1, ..."
                )
            name, text = fields[path].strip(), fields[caption].strip()
            if _URL.match(name):
                raise UserError(f"{self.path}, line {rows.line_num}: the image {name[:80]!r} is a url; {_DOWNLOAD}")
            if len(text) > LARGEST_CAPTION:
                self._rows.append(Skip("caption too large", self._key(name)))
                continue
            self._rows.append(_Row(name, text, int(digits) if digits else None))

    def _column(self, header: list[str], names: tuple[str, ...]) -> int:
        """The position of the first of `names` in the header."""
        for name in names:
            if name in header:
                return header.index(name)
        columns = ", ".join(header) or "none"
        advice = f"; if the images have not been downloaded yet, {_DOWNLOAD}" if "url" in header else ""
        raise UserError(f"{self.path} has no column {' or '.join(names)} in its first row: found {columns}{advice}")
