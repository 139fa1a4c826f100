"""Memory-mapped weights files, tensors that are views of them, and errors for files of other kinds."""

from __future__ import annotations

import dataclasses
import mmap
import pathlib
import stat

import numpy as np

from jaxclip.errors import UserError

MOST_DIMENSIONS = 32  # of a tensor; NumPy's limit is 64
COPY_AGAIN = "download or copy it again"


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A tensor whose values in a mapped file have the same form as in memory.

    Attributes:
      content: the content of the file, which stays mapped as long as an array read from it exists.
      start: the offset of the values.
      shape: the tensor's shape.
      dtype: the tensor's dtype, little-endian.
      order: "C" if the last dimension varies fastest, "F" if the first does.
    """

    content: mmap.mmap
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: str = "C"

    def read(self) -> np.ndarray:
        """The values as a read-only view of the file."""
        return np.ndarray(self.shape, self.dtype, self.content, self.start, order="F" if self.order == "F" else "C")


def map_file(path: pathlib.Path) -> mmap.mmap:
    """The content of a regular, non-empty file, mapped read-only.

    Raises UserError if the file does not exist, is a folder, a pipe or a device, is empty, or cannot be opened.
    """
    try:
        # Checked before opening, because opening a pipe blocks until another process writes to it.
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f"{path} is a folder; name the file of weights in it")
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path} is not a regular file; name a file of weights")
        if found.st_size == 0:
            raise UserError(f"{path} is empty; {COPY_AGAIN}")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot open {path}: {reason}; check the name and whether it may be read") from None


def archived(path: pathlib.Path, kind: str) -> UserError:
    """The error for a file that contains others; `kind` is what it is."""
    return UserError(f"{path} is {kind}: unpack it and give the folder, or the file of weights in it")


def pytorch(path: pathlib.Path) -> UserError:
    """The error for a file that torch wrote with pickle."""
    return UserError(
        f"{path} is a PyTorch file, which can run code when opened; convert it with torch installed: "
        f"python tools/torch_to_safetensors.py {path} DST.safetensors, or take the model's .safetensors"
    )
