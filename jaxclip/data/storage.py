"""Files read by position, on a local disk or, as gs://, s3:// and the like, through fsspec."""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from jaxclip.data.chunk_cache import ChunkCache
from jaxclip.errors import UserError

# What one request to remote storage fetches: long enough that the request's delay is small beside the transfer.
REMOTE_BLOCK = 4 << 20
_REMOTE_CACHE = 512 << 20
_OPEN_FILES = 128  # kept open between reads; the usual limit for a process is 1024


@dataclasses.dataclass(frozen=True)
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
    return str(pathlib.Path(root).expanduser() / pathlib.Path(path).expanduser())


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
        raise UserError(f"{pattern} matches no file: check the path and the pattern")
    return files


class Files(Sequence[File]):
    """Reads the given files by position, from any number of threads.

    Local files stay open between reads, a number of them; of remote ones the blocks read last are kept.
    """

    def __init__(self, files: Sequence[File]):
        self._files = files
        self._local = functools.lru_cache(maxsize=_OPEN_FILES)(_Open)
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
        file = self._files[number]
        if is_remote(file.path):
            data = self._read_remote(file, start, size)
        else:
            data = self._local(file.path).read(start, size)
        if len(data) != size:
            raise OSError("the file is shorter than when it was indexed")
        return data

    def _read_remote(self, file: File, start: int, size: int) -> bytes:
        first, last = start // REMOTE_BLOCK, (start + size - 1) // REMOTE_BLOCK
        blocks = [
            self._blocks.get((file.path, block), functools.partial(_fetch, file.path, block))
            for block in range(first, last + 1)
        ]
        offset = start - first * REMOTE_BLOCK
        return b"".join(blocks)[offset : offset + size] if len(blocks) > 1 else blocks[0][offset : offset + size]


class _Open:
    """A local file, open until nobody holds it: leaving the cache never closes it under a reader in another thread."""

    def __init__(self, path: str):
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def __del__(self):
        if self._descriptor >= 0:
            os.close(self._descriptor)


def fingerprint(files: Sequence[File]) -> str:
    """A name for the content of these files, which changes when one of them does."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.stamp}\0".encode("utf-8", errors="surrogateescape"))
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
        raise UserError(f"{path}: {error} (pip install 'jaxclip[{scheme}]' where that exists)") from error
    except ValueError as error:
        raise UserError(f"{path}: fsspec knows no {scheme}:// storage") from error


def _fetch(path: str, block: int) -> tuple[bytes, int]:
    try:
        data = filesystem(path).cat_file(path, block * REMOTE_BLOCK, (block + 1) * REMOTE_BLOCK)
    except OSError:
        raise
    except Exception as error:  # each storage library has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
    return data, len(data)


def _list_local(pattern: str) -> Iterator[File]:
    for text in expand_ranges(pattern):
        if os.path.isfile(text):  # before globbing: a name may hold brackets
            yield _local_file(text)
        elif glob.has_magic(text):
            yield from (_local_file(path) for path in sorted(glob.glob(text)) if os.path.isfile(path))
        else:
            within = f" (of {pattern})" if text != pattern else ""
            raise UserError(f"{text}{within} is not there or is no file: check the path")


def _local_file(path: str) -> File:
    status = os.stat(path)
    return File(path, status.st_size, str(status.st_mtime_ns))


def _list_remote(pattern: str) -> list[File]:
    """As `_list_local`, with one request for each folder, not for each file."""
    storage = filesystem(pattern)
    folders: dict[str, dict[str, File]] = {}
    files: list[File] = []
    try:
        for text in expand_ranges(pattern):
            if glob.has_magic(text):
                found = storage.glob(text, detail=True)
                files += [_remote_file(storage, found[path]) for path in sorted(found) if found[path]["type"] == "file"]
                continue
            if text == pattern:
                files.append(_remote_file(storage, storage.info(text)))
                continue
            folder = text.rpartition("/")[0]
            if folder not in folders:
                listed = (_remote_file(storage, info) for info in storage.ls(folder, detail=True))
                folders[folder] = {file.name: file for file in listed}
            name = text.rpartition("/")[2]
            if name not in folders[folder]:
                raise UserError(f"{text} is not there: check the path")
            files.append(folders[folder][name])
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{pattern} is not there: check the path") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{pattern} cannot be listed: {reason}") from error
    return files


def _remote_file(storage, info: dict) -> File:
    stamps = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")
    stamp = next((info[key] for key in stamps if key in info), "")
    return File(storage.unstrip_protocol(info["name"]), info["size"] or 0, str(stamp))


def expand_ranges(pattern: str) -> Iterator[str]:
    """Expands every {first..last}, keeping leading zeros; lazily, for a range may be mistyped to be huge."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        for rest in expand_ranges(pattern[match.end() :]):
            yield f"{pattern[: match.start()]}{number:0{len(first)}d}{rest}"
