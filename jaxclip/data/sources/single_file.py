"""Reads of single image and caption files, local or remote."""

from __future__ import annotations

import os
import stat

from jaxclip.data.record import LARGEST_CAPTION, LARGEST_IMAGE, Skip
from jaxclip.data.storage import filesystem, is_remote


def read_image(path: str, key: str) -> bytes | Skip:
    """The content of an image file, or a `Skip` with the reason why it is unusable."""
    return _read(path, key, LARGEST_IMAGE, "image file too large")


def read_caption(path: str, key: str) -> str | Skip:
    """The stripped text of a caption file, or a `Skip` with the reason why it is unusable."""
    data = _read(path, key, LARGEST_CAPTION, "caption too large")
    return data if isinstance(data, Skip) else data.decode("utf-8", errors="replace").strip()


def _read(path: str, key: str, max_bytes: int, too_large: str) -> bytes | Skip:
    try:
        data = _read_remote(path, max_bytes) if is_remote(path) else _read_local(path, max_bytes)
    except FileNotFoundError:
        return Skip("missing file", key)
    except Exception:  # a folder, no permission, a null byte in the name, or a storage library's own error
        return Skip("unreadable file", key)
    return Skip(too_large, key) if data is None else data


def _read_local(path: str, max_bytes: int) -> bytes | None:
    """The content of a file, or None if it has more than `max_bytes`; raises OSError or ValueError."""
    # Non-blocking, because the path may be a pipe without a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        return file.read(max_bytes) if status.st_size <= max_bytes else None


def _read_remote(path: str, max_bytes: int) -> bytes | None:
    """As `_read_local`, in one request, which fetches at most `max_bytes` + 1 bytes."""
    data = filesystem(path).cat_file(path, 0, max_bytes + 1)
    return data if len(data) <= max_bytes else None
