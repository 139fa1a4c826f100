"""Paths that a person gives to commands: local, with ~ for the home folder, never made by mistake."""

from __future__ import annotations

import os
import pathlib

from jaxclip.errors import UserError


def local(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """A path on a local disk.

    Args:
      path: as given; ~ at its start is the home folder, which shells leave alone after --workdir=.
      name: of the flag or argument, for the message.

    Raises:
      UserError: it is remote; taken for a local one, it would make a folder named gs: here.

    >>> local("runs/x", "--workdir")
    PosixPath('runs/x')
    """
    text = os.fspath(path)
    if "://" in text or text.startswith(("gs:/", "s3:/")):
        raise UserError(f"{name}={text} must be on a local disk; mount the bucket, or copy from there")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:  # No home folder of that user.
        raise UserError(f"{name}={text}: there is no such user's home folder") from None
