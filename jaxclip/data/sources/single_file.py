"""Reads of single files, local or remote: images, captions, and tables of them."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

from jaxclip.data.record import LARGEST_CAPTION, LARGEST_IMAGE, Skip
from jaxclip.data.storage import filesystem, is_remote
from jaxclip.errors import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file of any size, to be read in the block.

    Raises:
      UserError: it does not exist or is not a regular file, or reading it fails.
    """
    try:
        with filesystem(path).open(path, "rb") if is_remote(path) else _local(path) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # each storage library has errors of its own
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error


def at(folder: str, path: str) -> str:
    """A path that a table gives: relative to a folder, absolute, or with a scheme."""
    return path if is_remote(path) else os.path.join(folder, path)


def warn_of_replaced(path: str, captions: Iterable[str]) -> None:
    """Logs how many captions of a file have a U+FFFD, as which bytes that are not UTF-8 are read."""
    replaced = sum("\ufffd" in caption for caption in captions)
    if replaced:
        _log.warning("%s: %d captions have bytes that are not UTF-8, which became U+FFFD", path, replaced)


def warn_of_unused(path: str, counts: Mapping[str, int]) -> None:
    """Logs how many entries of a file cannot be used, by what they are."""
    if counts:
        _log.warning("%s: not used are %s", path, ", ".join(f"{count:,} {what}" for what, count in counts.items()))


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
    with _local(path) as file:
        return file.read(max_bytes) if os.fstat(file.fileno()).st_size <= max_bytes else None


@contextlib.contextmanager
def _local(path: str) -> Iterator[BinaryIO]:
    """An open regular file; raises OSError or ValueError."""
    # Non-blocking, because the path may be a pipe without a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        yield file


def _read_remote(path: str, max_bytes: int) -> bytes | None:
    """As `_read_local`, in one request, which fetches at most `max_bytes` + 1 bytes."""
    data = filesystem(path).cat_file(path, 0, max_bytes + 1)
    return data if len(data) <= max_bytes else None
