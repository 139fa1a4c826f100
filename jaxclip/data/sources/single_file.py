"""Single files that a source names, of a picture or a caption, local or remote."""

from __future__ import annotations

import os
import stat

from jaxclip.data.record import LARGEST_CAPTION, LARGEST_PICTURE, Skip
from jaxclip.data.storage import filesystem, is_remote


def read_picture(path: str, key: str) -> bytes | Skip:
    """The content of a picture file, or why it is not used."""
    return _read(path, key, LARGEST_PICTURE, "picture file too large")


def read_caption(path: str, key: str) -> str | Skip:
    """The text of a caption file, stripped, or why it is not used."""
    data = _read(path, key, LARGEST_CAPTION, "caption too large")
    return data if isinstance(data, Skip) else data.decode("utf-8", errors="replace").strip()


def _read(path: str, key: str, most: int, too_large: str) -> bytes | Skip:
    try:
        data = _read_remote(path, most) if is_remote(path) else _read_local(path, most)
    except FileNotFoundError:
        return Skip("missing file", key)
    except Exception:  # a folder, no permission, a zero byte in the name; and each storage library's own errors
        return Skip("unreadable file", key)
    return Skip(too_large, key) if data is None else data


def _read_local(path: str, most: int) -> bytes | None:
    """The content of a file of at most so many bytes, None of a larger one; raises OSError or ValueError."""
    # Without waiting: the path may be that of a pipe which nobody writes to.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        return file.read(most) if status.st_size <= most else None


def _read_remote(path: str, most: int) -> bytes | None:
    """As `_read_local`, in one request; of too large a file no more than so many bytes are fetched."""
    data = filesystem(path).cat_file(path, 0, most + 1)
    return data if len(data) <= most else None
