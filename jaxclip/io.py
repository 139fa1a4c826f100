"""Atomic file replacement, and foreign text and exceptions made fit for messages and logs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator, Sequence
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` when the block ends and is removed if an exception leaves it.

    Readers see the old content or all of the new one. Nothing is synchronized with the disk: a caller whose file has
    to survive a power failure calls `os.fsync` inside the block.

    Raises:
      OSError: the file cannot be written or renamed.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def printable(text: str | bytes, limit: int | None = None) -> str:
    """Foreign text with U+FFFD for each character that could harm a terminal or a log.

    These are control and formatting characters, line breaks, lone surrogates, and bytes that are not UTF-8.

    Args:
      text: of any length.
      limit: the most characters that are kept; "..." follows if there were more.
    """
    text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
    start = text[:limit]
    if not start.isprintable():
        start = "".join(c if c.isprintable() else "\ufffd" for c in start)
    return start if len(start) == len(text) else f"{start}..."


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks."""
    return " ".join(str(error.args[0] if error.args else error).split())


def first_few(names: Sequence[str], number: int = 5) -> str:
    """The first of many foreign names, separated by commas, and how many more there are."""
    listed = ", ".join(printable(name, 80) for name in names[:number])
    return f"{listed} and {len(names) - number} more" if len(names) > number else listed
