"""Files of the index cache, written as a whole or not at all."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import BinaryIO

from jaxclip.io import atomic_write


def keep(place: pathlib.Path, fill: Callable[[BinaryIO], object]) -> bool:
    """Writes a file of the cache, and its folder if need be.

    Args:
      place: the file.
      fill: is called with the open file and writes the content.

    Returns:
      Whether it could be written: a cache on a full or read-only disk stops no one.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            fill(file)
    except OSError:
        return False
    return True
