"""A csv or tsv of picture paths and captions as a source."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from jaxclip.data.sources import Record, Skip
from jaxclip.errors import UserError

# Names a column may have, tried in this order, whatever the case.
_PATH_COLUMNS = ("path", "filepath", "file", "image", "filename")
_CAPTION_COLUMNS = ("caption", "title", "text")
_LABEL_COLUMN = "label"


class _Row(NamedTuple):
    path: str
    caption: str
    label: int | None


class Table:
    """The rows of a csv (commas) or tsv (tabs) file with a header row, one record each.

    A column of paths (path, filepath, file, image or filename) and one of captions (caption, title or text) must be
    there; a column `label` of class indices may be. Quoted fields may hold separators and newlines. Paths are relative
    to the table's folder, or absolute. Pictures are opened when they are read, not before.
    """

    class_names: Sequence[str] = ()
    chunk_ends = None

    def __init__(self, path: str):
        """Reads the table.

        Raises:
          UserError: the file is missing or no table, has no rows, lacks a column, or a label is not a class index.
        """
        self.path = pathlib.Path(path)
        self._rows: list[_Row | Skip] = []
        try:
            # utf-8-sig: spreadsheets begin a csv with a byte order mark, which would become part of a column's name.
            with self.path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                rows = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
                try:
                    self._load(rows)
                except csv.Error as error:
                    raise UserError(f"{path}, line {rows.line_num}: {error}") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        if not self._rows:
            raise UserError(f"{path} has no rows: it needs a header row and a row for each picture")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, in their order; a `Skip` for a missing picture and for neither caption nor label.

        So is a row with more fields than the header has: a comma in its caption was not quoted.
        """
        return [self._record(self._rows[index]) for index in ids]

    def _record(self, row: _Row | Skip) -> Record | Skip:
        if isinstance(row, Skip):
            return row
        key = self._key(row.path)
        if not row.caption and row.label is None:
            return Skip("no caption", key)
        try:
            image = (self.path.parent / row.path).read_bytes()
        except FileNotFoundError:
            return Skip("missing file", key)
        except (OSError, ValueError):  # a folder, no permission, a name too long, a zero byte in the name
            return Skip("unreadable file", key)
        return Record(image, (row.caption,) if row.caption else (), key, row.label)

    def _key(self, path: str) -> str:
        return f"{self.path.name}:{path}"

    def _load(self, rows) -> None:
        """Keeps the path, caption and label of every row of a csv.reader."""
        header = [name.strip().lower() for name in next(rows, [])]
        path = self._column(header, _PATH_COLUMNS)
        caption = self._column(header, _CAPTION_COLUMNS)
        label = header.index(_LABEL_COLUMN) if _LABEL_COLUMN in header else None
        for fields in rows:
            if not fields:
                continue  # an empty line
            fields += [""] * (len(header) - len(fields))
            if len(fields) > len(header):
                self._rows.append(Skip("too many fields", self._key(fields[path].strip())))
                continue
            digits = "" if label is None else fields[label].strip()
            if digits and not (digits.isdecimal() and len(digits) < 10):
                raise UserError(
                    f"{self.path}, line {rows.line_num}: the label {digits!r} is not a class index (0, 1, ...)"
                )
            self._rows.append(_Row(fields[path].strip(), fields[caption].strip(), int(digits) if digits else None))

    def _column(self, header: list[str], names: tuple[str, ...]) -> int:
        """The position of the first of `names` in the header."""
        for name in names:
            if name in header:
                return header.index(name)
        found = ", ".join(header) or "none"
        raise UserError(f"{self.path} has no column {' or '.join(names)} in its first row: found {found}")
