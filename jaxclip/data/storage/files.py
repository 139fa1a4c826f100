"""Random-access reads of local files and, through fsspec, of remote ones (gs://, s3://, ...)."""

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

# Bytes fetched by one request to remote storage: enough that the transfer takes longer than the request's latency.
REMOTE_BLOCK = 4 << 20
# Bytes. Holds a shuffling window of 4,096 records of 500 kB, so that each of its blocks is fetched once.
_REMOTE_CACHE = 2 << 30
_OPEN_FILES = 128  # kept open between reads; the usual limit for a process is 1024


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was listed.

    Attributes:
      path: local, or with a scheme (`gs://bucket/a.tar`).
      size: in bytes.
      stamp: changes when the content does: the modification time in ns, or remote storage's equivalent.
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


def exists(path: str) -> bool:
    """Whether there is a regular file at a path, local or remote; False if the storage cannot be asked."""
    if not is_remote(path):
        return _local_file(path) is not None
    try:
        return bool(filesystem(path).isfile(path))
    except UserError:
        raise
    except Exception:  # each storage library has errors of its own
        return False


def resolve(path: str, root: str) -> str:
    """Resolves a path of a config: relative paths start from `root`, or from the working directory if it is empty."""
    if is_remote(path):
        return path
    if is_remote(root) and not path.startswith(("/", "~")):
        return f"{root.rstrip('/')}/{path}"
    try:
        return str(pathlib.Path(root).expanduser() / pathlib.Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"{path} (from {root or 'the working directory'}): no home folder for this user; write the full path"
        ) from error


def cache_folder(kind: str) -> pathlib.Path:
    """The folder for cached data of a kind, in `$JAXCLIP_CACHE` (default: `~/.cache/jaxclip`)."""
    return pathlib.Path(os.environ.get("JAXCLIP_CACHE") or "~/.cache/jaxclip").expanduser() / kind


def list_files(pattern: str) -> list[File]:
    """The files of a pattern: one path, a glob (`data/*.tar`) or numeric ranges (`data/{00000..00099}.tar`).

    Raises:
      UserError: a named file does not exist, a glob matches no file, or remote storage cannot be listed.
    """
    files = _list_remote(pattern) if is_remote(pattern) else list(_list_local(pattern))
    if not files:
        raise UserError(f"{pattern} matches no file: its range ends before it begins; write the smaller number first")
    return files


class Files(Sequence[File]):
    """Random-access reads of a list of files; thread-safe.

    A limited number of local files stay open between reads. For remote files, the most recently read blocks are cached.
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
        """Exactly `size` bytes of file `number`, starting at byte `start`.

        Raises:
          OSError: the file cannot be read or is too short.
        """
        return self._read(number, start, size, self._read_blocks)

    def read_once(self, number: int, start: int, size: int) -> bytes:
        """As `read`, for bytes that are needed only once: a remote read fetches just these bytes and caches nothing."""
        return self._read(number, start, size, _fetch)

    def _read(self, number: int, start: int, size: int, read_remote: Callable[[File, int, int], bytes]) -> bytes:
        file = self._files[number]
        # The size may come from a damaged file: allocate no memory for bytes that cannot exist.
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
    """An open local file, closed with its last reference: evicting it from a cache cannot interrupt another thread."""

    def __init__(self, path: str):
        """Raises OSError if the file cannot be opened."""
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes, or fewer at the end of the file; raises OSError if it cannot be read."""
        data = os.pread(self.descriptor, size, start)
        # Linux reads at most 2 GiB at once, and network file systems may return fewer bytes than there are.
        while len(data) < size and (more := os.pread(self.descriptor, size - len(data), start + len(data))):
            data += more
        return data

    # Bound here: when the interpreter ends, the module may be empty already.
    def __del__(self, close=os.close):
        if self.descriptor >= 0:
            close(self.descriptor)


def fingerprint(files: Sequence[File]) -> str:
    """A hash of the files' paths, sizes and stamps; it changes when a file does."""
    digest = hashlib.sha256()
    for file in files:
        path = file.path if is_remote(file.path) else os.path.abspath(file.path)
        digest.update(os.fsencode(f"{path}\0{file.size}\0{file.stamp}\0"))
    return digest.hexdigest()[:32]


def filesystem(path: str):
    """The fsspec file system of a remote path.

    Raises:
      UserError: the scheme is unknown, or its package is not installed.
    """
    import fsspec

    scheme = path.partition("://")[0]
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(f"{path}: the package for {scheme}:// storage is not installed: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: fsspec does not support {scheme}://; check the scheme") from error
    except Exception as error:  # each storage library has errors of its own
        raise UserError(f"{path}: {scheme}:// storage cannot be used: {error}") from error


def _fetch_block(file: File, block: int) -> tuple[bytes, int]:
    start = block * REMOTE_BLOCK
    data = _fetch(file, start, min(REMOTE_BLOCK, file.size - start))
    return data, len(data)


def _fetch(file: File, start: int, size: int) -> bytes:
    """One request; raises OSError if it fails."""
    try:
        return filesystem(file.path).cat_file(file.path, start, start + size)
    except OSError:
        raise
    except Exception as error:  # each storage library has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error


def _list_local(pattern: str) -> Iterator[File]:
    for text in expand_ranges(pattern):
        if file := _local_file(text):  # before globbing: a name may contain brackets
            yield file
        elif glob.has_magic(text):
            matches = [file for path in sorted(glob.glob(text)) if (file := _local_file(path))]
            yield from matches or _fail_missing(text, pattern)
        else:
            _fail_missing(text, pattern)


def _fail_missing(text: str, pattern: str) -> NoReturn:
    """Raises UserError for a path without a file. Listing stops there, because a mistyped range can be huge."""
    within = f" (of {pattern})" if text != pattern else ""
    problem = "matches no file" if glob.has_magic(text) else "does not exist or is not a file"
    raise UserError(f"{text}{within} {problem}; check the path")


def _local_file(path: str) -> File | None:
    """The regular file at a path; None if there is none, or a folder or a pipe instead."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None
    return File(path, status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None


def _list_remote(pattern: str) -> list[File]:
    """As `_list_local`, with one request per folder instead of one per file."""
    folders: dict[str, dict[str, dict]] = {}
    files: list[File] = []
    try:
        storage = filesystem(pattern)
        storage.invalidate_cache()  # otherwise files changed since the folder was first listed would look unchanged
        for text in expand_ranges(pattern):
            if glob.has_magic(text):
                infos = [info for _, info in sorted(storage.glob(text, detail=True).items()) if info["type"] == "file"]
                files += [_remote_file(storage, info) for info in infos or _fail_missing(text, pattern)]
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
                _fail_missing(text, pattern)
            files.append(_remote_file(storage, info))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{pattern} does not exist; check the path") from error
    except Exception as error:  # as in _fetch
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{pattern} cannot be listed: {reason}") from error
    return files


def _remote_file(storage, info: dict) -> File:
    path, size = storage.unstrip_protocol(info["name"]), info.get("size")
    if size is None:
        raise UserError(f"{path}: the storage does not report its size, so it cannot be read by position; copy it")
    stamps = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")
    return File(path, size, str(next((info[key] for key in stamps if info.get(key)), "")))


def expand_ranges(pattern: str) -> Iterator[str]:
    """Expands every {first..last}, keeping leading zeros. Lazy, because a mistyped range can be huge."""
    match = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if not match:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        for rest in expand_ranges(pattern[match.end() :]):
            yield f"{pattern[: match.start()]}{number:0{len(first)}d}{rest}"
