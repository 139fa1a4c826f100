"""Atomic writes of files in the index cache."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from jaxclip.data.index.checked import Writer
from jaxclip.io import atomic_write


def keep(place: pathlib.Path, fill: Callable[[Writer], object]) -> bool:
    """Writes a file of the cache with checksums, completely or not at all, and creates its folder if necessary.

    Args:
      place: path of the file, to be read with `checked.open_checked`.
      fill: writes the content to the open file.

    Returns:
      Whether the file was written. A failure is not an error: the disk of the cache may be full or read-only.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            writer = Writer(file)
            fill(writer)
            writer.finish(place.name)
    except OSError:
        return False
    return True
