"""Captions of images, from the files that Flickr8k and Flickr30k are published with (Hodosh et al. 2013)."""

from __future__ import annotations

import collections

from jaxclip.data.record import Skip
from jaxclip.data.sources.single_file import opened, warn_of_unused
from jaxclip.data.sources.table_rows import csv_rows
from jaxclip.errors import UserError


def read_tokens(path: str) -> dict[str, list[str]]:
    """The captions of each image by its file name, in the file's order; a warning counts lines that cannot be used.

    Args:
      path: of Flickr8k.token.txt or results_20130124.token, local or remote, with lines `NAME#NUMBER<tab>CAPTION`.

    Raises:
      UserError: the file cannot be read or has no line of this form.
    """
    captions: dict[str, list[str]] = {}
    unused = collections.Counter[str]()
    with opened(path) as file:
        for line in file.read().decode("utf-8-sig", errors="replace").split("\n"):
            place, tab, caption = line.partition("\t")
            name, _, number = place.rpartition("#")
            if tab and name and number.isdecimal():
                captions.setdefault(name, []).append(caption)
            elif line.strip():
                unused["lines that are not NAME#NUMBER, a tab and a caption"] += 1
    if not captions:
        raise UserError(f"{path} has no line of NAME#NUMBER, a tab and a caption, as Flickr8k.token.txt has")
    warn_of_unused(path, unused)
    return captions


def read_table(path: str) -> dict[str, list[str]]:
    """As `read_tokens`, of a table with a header and a row for each caption: Kaggle's captions.txt of Flickr8k.

    Raises:
      UserError: the file cannot be read, is not a table or has no rows.
    """
    captions: dict[str, list[str]] = {}
    unused = collections.Counter[str]()
    with opened(path) as file:
        for row in csv_rows(file, path):
            if isinstance(row, Skip):
                unused[f"rows with {row.reason}"] += 1
            else:
                captions.setdefault(row.path, []).extend(row.captions)
    if not captions:
        raise UserError(f"{path} has no rows; write a header row and one row per caption")
    warn_of_unused(path, unused)
    return captions
