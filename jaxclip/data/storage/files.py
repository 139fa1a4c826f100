"""Files read by position, on a local disk or, as gs://, s3:// and the like, through fsspec."""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from jaxclip.data.storage.chunk_cache import ChunkCache
from jaxclip.errors import UserError

# What one request to remote storage fetches: long enough that the request's delay is small beside the transfer.
REMOTE_BLOCK = 4 << 20
# A shuffling window of 4,096 records of 500 kB, so that each block of it is fetched once.
_REMOTE_CACHE = 2 << 30
_OPEN_FILES = 128  # kept open between reads; the usual limit for a process is 1024


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was listed.

    Attributes:
      path: local, or with a scheme (`gs://bucket/a.tar`).
      size: in bytes.
      stamp: changes when the content does: the time of the last change in ns, or what remote storage gives instead.
    """

    path: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, such as gs:// or s3://."""
    return "://" in path


def resolve(path: str, root: str) -> str:
    """A path of a config: relative ones start from `root`, or from the working directory where that is empty."""
    if is_remote(path):
        return path
    if is_remote(root) and not path.startswith(("/", "~")):
        return f"{root.rstrip('/')}/{path}"
    try:
        return str(pathlib.Path(root).expanduser() / pathlib.Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(f"{path} (from {root or 'the working directory'}): there is no such user's folder") from error


def cache_folder(kind: str) -> pathlib.Path:
    """Where things of a kind are kept between runs: in `$JAXCLIP_CACHE`, by default `~/.cache/jaxclip`."""
    return pathlib.Path(os.environ.get("JAXCLIP_CACHE") or "~/.cache/jaxclip").expanduser() / kind


def list_files(pattern: str) -> list[File]:
    """The files that a pattern names: one path, a glob (`data/*.tar`) or numeric ranges (`data/{00000..00099}.tar`).

    Raises:
      UserError: a file that is named is not there, a glob matches nothing, or remote storage cannot be asked.
    """
    files = _list_remote(pattern) if is_remote(pattern) else list(_list_local(pattern))
    if not files:
        raise UserError(f"{pattern} matches no file: its range ends before it begins")
    return files


class Files(Sequence[File]):
    """Reads the given files by position, from any number of threads.

    Local files stay open between reads, a number of them; of remote ones the blocks read last are kept.
    """

    def __init__(self, files: Sequence[File]):
        self._files = files
        self._local = functools.lru_cache(maxsize=_OPEN_FILES)(OpenFile)
        self._blocks: ChunkCache[bytes] = ChunkCache(_REMOTE_CACHE)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number):
        return self._files[number]

    def read(self, number: int, start: int, size: int) -> bytes:
        """Exactly `size` bytes of file `number` from byte `start`.

        Raises:
          OSError: the file cannot be read, or ends before.
        """
        return self._read(number, start, size, self._read_blocks)

    def read_once(self, number: int, start: int, size: int) -> bytes:
        """As `read`, for what is not wanted again: of a remote file just these bytes are fetched, and not kept."""
        return self._read(number, start, size, _fetch)

    def _read(self, number: int, start: int, size: int, read_remote: Callable[[File, int, int], bytes]) -> bytes:
        file = self._files[number]
        # A size may come from a damaged file: no memory is taken for what cannot be there.
        if start < 0 or size < 0 or start + size > file.size:
            raise OSError(f"bytes {start} to {start + size} are not within the file")
        if not size:
            return b""
        data = read_remote(file, start, size) if is_remote(file.path) else self._local(file.path).read(start, size)
        if len(data) != size:
            raise OSError("the file is shorter than when it was listed")
        return data

    def _read_blocks(self, file: File, start: int, size: int) -> bytes:
        first, last = start // REMOTE_BLOCK, (start + size - 1) // REMOTE_BLOCK
        blocks = [
            self._blocks.get((file.path, block), functools.partial(_fetch_block, file, block))
            for block in range(first, last + 1)
        ]
        offset = start - first * REMOTE_BLOCK
        return b"".join(blocks)[offset : offset + size] if len(blocks) > 1 else blocks[0][offset : offset + size]


class OpenFile:
    """A local file, open until nobody holds it: leaving a cache never closes it under a reader in another thread."""

    def __init__(self, path: str):
        """Raises OSError where the file cannot be opened."""
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes, or less at the end of the file; raises OSError where it cannot be read."""
        return os.pread(self.descriptor, size, start)

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


def fingerprint(files: Sequence[File]) -> str:
    """A name for the content of these files, which changes when one of them does."""
    digest = hashlib.sha256()
    for file in files:
        path = file.path if is_remote(file.path) else os.path.abspath(file.path)
        digest.update(os.fsencode(f"{path}\0{file.size}\0{file.stamp}\0"))
    return digest.hexdigest()[:32]


def filesystem(path: str):
    """The fsspec file system of a remote path.

    Raises:
      UserError: its scheme is unknown, or the package for it is not installed.
    """
    import fsspec

    scheme = path.partition("://")[0]
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(f"{path}: a package for {scheme}:// storage is not installed: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: fsspec knows no {scheme}:// storage") from error
    except Exception as error:  # each storage library has errors of its own
        raise UserError(f"{path}: {scheme}:// storage cannot be used: {error}") from error


def _fetch_block(file: File, block: int) -> tuple[bytes, int]:
    start = block * REMOTE_BLOCK
    data = _fetch(file, start, min(REMOTE_BLOCK, file.size - start))
    return data, len(data)


def _fetch(file: File, start: int, size: int) -> bytes:
    """One request; raises OSError where it fails."""
    try:
        return filesystem(file.path).cat_file(file.path, start, start + size)
    except OSError:
        raise
    except Exception as error:  # each storage library has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error


def _list_local(pattern: str) -> Iterator[File]:
    for text in expand_ranges(pattern):
        if file := _local_file(text):  # before globbing: a name may hold brackets
            yield file
        elif glob.has_magic(text):
            found = [file for path in sorted(glob.glob(text)) if (file := _local_file(path))]
            yield from found or _nothing(text, pattern)
        else:
            _nothing(text, pattern)


def _nothing(text: str, pattern: str) -> NoReturn:
    """Ends the listing of a pattern at the first of its paths that names nothing: its ranges may be mistyped."""
    within = f" (of {pattern})" if text != pattern else ""
    wrong = "matches no file" if glob.has_magic(text) else "is not there or is no file"
    raise UserError(f"{text}{within} {wrong}: check the path")


def _local_file(path: str) -> File | None:
    """The regular file of that path; None where there is none, but a folder or a pipe perhaps."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None
    return File(path, status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None


def _list_remote(pattern: str) -> list[File]:
    """As `_list_local`, with one request for each folder, not for each file."""
    folders: dict[str, dict[str, dict]] = {}
    files: list[File] = []
    try:
        storage = filesystem(pattern)
        storage.invalidate_cache()  # or a changed file would look as it did when its folder was first listed
        for text in expand_ranges(pattern):
            if glob.has_magic(text):
                infos = [info for _, info in sorted(storage.glob(text, detail=True).items()) if info["type"] == "file"]
                files += [_remote_file(storage, info) for info in infos or _nothing(text, pattern)]
                continue
            folder, _, name = text.rpartition("/")
            if text == pattern:
                info = storage.info(text)
            else:
                if folder not in folders:
                    listed = storage.ls(folder, detail=True)
                    folders[folder] = {info["name"].rpartition("/")[2]: info for info in listed}
                info = folders[folder].get(name, {})
            if info.get("type") != "file":
                _nothing(text, pattern)
            files.append(_remote_file(storage, info))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{pattern} is not there: check the path") from error
    except Exception as error:  # as in _fetch
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{pattern} cannot be listed: {reason}") from error
    return files


def _remote_file(storage, info: dict) -> File:
    path, size = storage.unstrip_protocol(info["name"]), info.get("size")
    if size is None:
        raise UserError(f"{path}: the storage does not say how long it is, so it cannot be read by position: copy it")
    stamps = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")
    return File(path, size, str(next((info[key] for key in stamps if info.get(key)), "")))


def expand_ranges(pattern: str) -> Iterator[str]:
    """Expands every {first..last}, keeping leading zeros; lazily, for a range may be mistyped to be huge."""
    match = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if not match:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        for rest in expand_ranges(pattern[match.end() :]):
            yield f"{pattern[: match.start()]}{number:0{len(first)}d}{rest}"
