"""Source that reads a table of image paths and captions: csv, tsv or JSON Lines."""

from __future__ import annotations

from collections.abc import Sequence

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.single_file import at, opened, read_image, warn_of_replaced
from jaxclip.data.sources.table_rows import Row, csv_rows, json_rows
from jaxclip.errors import UserError


class Table:
    """The rows of a table, one record each.

    Required are a column of paths (path, filepath, file, image, filename, file_name, ...) and one of captions (caption,
    title, text, ...) or of class indices (label). A csv or tsv file has a header row, and commas, tabs, semicolons or
    bars between its fields; quoted fields may contain separators and newlines. A jsonl file has an object on each line,
    whose caption may be a list of captions.

    Paths are relative to the table's folder, absolute, or have a scheme (gs://bucket/a.jpg). Images are opened when
    they are read, not before. The text is UTF-8 or, with a byte order mark, UTF-16; a warning counts the captions that
    are not.
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
        self._name = path.rpartition("/")[2]
        self._folder = path.removesuffix(self._name)
        rows = json_rows if path.lower().endswith(".jsonl") else csv_rows
        with opened(path) as file:
            self._rows = list(rows(file, path))
        if not self._rows:
            raise UserError(f"{path} has no rows; write a header row and one row per image")
        warn_of_replaced(path, (text for row in self._rows if isinstance(row, Row) for text in row.captions))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each without an image, or with neither caption nor label.

        A row with more fields than the header is skipped too: its caption contains an unquoted comma.
        """
        return [self._record(self._rows[index]) for index in ids]

    def _record(self, row: Row | Skip) -> Record | Skip:
        if isinstance(row, Skip):
            return Skip(row.reason, f"{self._name}:{row.key}")
        key = f"{self._name}:{row.path[:4096]}"
        if not row.captions and row.label is None:
            return Skip("no caption", key)
        image = read_image(at(self._folder, row.path), key)
        return image if isinstance(image, Skip) else Record(image, row.captions, key, row.label)
