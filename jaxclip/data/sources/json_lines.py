"""JSON objects of files that have one on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jaxclip.data.sources.single_file import opened
from jaxclip.errors import UserError

_LARGEST_FIRST = 1 << 20  # bytes


def objects(path: str) -> Iterator[dict[str, Any]]:
    """The object of each line that is not empty; an empty one for a line that is not an object.

    Raises:
      UserError: the file cannot be read.
    """
    with opened(path) as file:
        for line in file:
            if line.strip():
                yield _parsed(line)


def first_object(path: str) -> dict[str, Any]:
    """The object of the first line; empty if it is not one, or if the file cannot be read."""
    try:
        with opened(path) as file:
            return _parsed(file.readline(_LARGEST_FIRST))
    except UserError:
        return {}


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
