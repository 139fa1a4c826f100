"""Atomic writes of files in the index cache."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import BinaryIO

from jaxclip.io import atomic_write


def keep(place: pathlib.Path, fill: Callable[[BinaryIO], object]) -> bool:
    """Writes a file of the cache, completely or not at all, and creates its folder if necessary.

    Args:
      place: path of the file.
      fill: writes the content to the open file.

    Returns:
      Whether the file was written. A failure is not an error: the disk of the cache may be full or read-only.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            fill(file)
    except OSError:
        return False
    return True
