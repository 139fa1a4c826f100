"""Random-access reads of local files, and of remote ones in fsspec's memory:// storage."""

import concurrent.futures
import os
import pathlib
import threading

import fsspec
import fsspec.implementations.memory
import pytest

from jaxclip.data.storage import REMOTE_BLOCK, Files, fingerprint, list_files
from jaxclip.data.storage import files as storage
from jaxclip.data.storage.chunk_cache import ChunkCache
from jaxclip.errors import UserError


@pytest.fixture
def requests(monkeypatch) -> list[tuple[int, int]]:
    """The ranges of bytes that are fetched from memory:// storage."""
    ranges = []
    cat_file = fsspec.implementations.memory.MemoryFileSystem.cat_file

    def noted(self, path, start=None, end=None, **options):
        ranges.append((start, end))
        return cat_file(self, path, start, end, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", noted)
    return ranges


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path, remote) -> str:
    return str(tmp_path) if request.param == "local" else remote


def put(path: str, data: bytes) -> str:
    fsspec.filesystem(path.partition("://")[0] if "://" in path else "file", auto_mkdir=True).pipe_file(path, data)
    return path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-1.tar", ["s-1.tar"]),
        ("s-*.tar", ["s-0.tar", "s-1.tar", "s-2.tar"]),
        ("s-[02].tar", ["s-0.tar", "s-2.tar"]),
        ("s-{0..2}.tar", ["s-0.tar", "s-1.tar", "s-2.tar"]),
        ("s-{1..2}.tar", ["s-1.tar", "s-2.tar"]),
        ("sub{00..01}/{8..9}.tar", ["8.tar", "9.tar", "8.tar", "9.tar"]),
        ("sub*/{8..9}.tar", ["8.tar", "8.tar", "9.tar", "9.tar"]),
    ],
)
def test_patterns_name_files_in_order(folder, pattern, names):
    for name in ("s-0.tar", "s-1.tar", "s-2.tar", "sub00/8.tar", "sub00/9.tar", "sub01/8.tar", "sub01/9.tar"):
        put(f"{folder}/{name}", name.encode())
    files = list_files(f"{folder}/{pattern}")
    assert [file.name for file in files] == names
    source = Files(files)
    for number, file in enumerate(files):
        assert file.path.endswith(source.read(number, 0, file.size).decode())


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none.tar", "none.tar does not exist"),
        ("none-*.tar", "none-*.tar matches no file"),
        ("s-{0..1}.tar", "s-1.tar"),
        ("s-{0..99999999999}.tar", "s-1.tar"),
        ("s-{0..%s}.tar" % ("9" * 5000), "does not exist"),
        ("s-{0..99999999999}*.tar", "s-1*.tar"),
        ("nowhere/{0..1}.tar", "does not exist"),
        ("s-{5..3}.tar", "matches no file"),
        ("sub", "is not a file"),
        ("su{0..1}b", "su0b (of"),
        ("*", None),
    ],
)
def test_what_is_not_there_is_one_line(folder, pattern, said):
    for name in ("s-0.tar", "sub/x", "su0b/x"):
        put(f"{folder}/{name}", b"!")
    if said is None:  # folders are skipped
        assert [file.name for file in list_files(f"{folder}/{pattern}")] == ["s-0.tar"]
        return
    with pytest.raises(UserError) as raised:
        list_files(f"{folder}/{pattern}")
    message = str(raised.value)
    assert said in message and folder in message and "\n" not in message


def test_unknown_storage_is_a_one_line_error():
    with pytest.raises(UserError, match="fsspec does not support nothing://"):
        list_files("nothing://bucket/x.tar")


def test_bytes_are_those_of_the_place(folder):
    data = bytes(range(256)) * (3 * REMOTE_BLOCK // 256) + b"end"
    files = Files(list_files(put(f"{folder}/x", data)))
    for start, size in [
        (0, 1),
        (REMOTE_BLOCK - 1, 2),
        (REMOTE_BLOCK, 0),
        (0, 0),
        (len(data), 0),
        (5, 2 * REMOTE_BLOCK + 7),
        (2 * REMOTE_BLOCK, REMOTE_BLOCK),
        (len(data) - 5, 5),
        (0, len(data)),
    ]:
        assert files.read(0, start, size) == data[start : start + size]
        assert files.read_once(0, start, size) == data[start : start + size]


@pytest.mark.parametrize(
    ("start", "size"), [(0, 11), (10, 1), (-1, 1), (0, -1), (5, -2), (1 << 62, 1), (0, 1 << 62), (1 << 80, 1 << 80)]
)
def test_bytes_that_are_not_there_are_an_error(folder, start, size):
    files = Files(list_files(put(f"{folder}/x", b"0123456789")))
    for read in (files.read, files.read_once):
        with pytest.raises(OSError, match="not within the file"):
            read(0, start, size)


def test_a_file_that_shrinks_or_goes_is_an_error(folder):
    paths = [put(f"{folder}/{name}", b"0123456789") for name in "xy"]
    files = Files(list_files(f"{folder}/[xy]"))
    put(paths[0], b"01234")
    (fsspec.filesystem("memory") if "://" in folder else fsspec.filesystem("file")).rm(paths[1])
    for number in range(2):
        with pytest.raises(OSError):
            files.read(number, 3, 5)


def test_a_remote_block_is_fetched_once_and_what_is_read_once_is_not_kept(remote, requests):
    files = Files(list_files(put(f"{remote}/x", bytes(REMOTE_BLOCK + 100))))
    for start in range(0, 2000, 100):
        files.read(0, start, 100)
    assert requests == [(0, REMOTE_BLOCK)]
    files.read(0, REMOTE_BLOCK - 10, 20)
    assert requests[1:] == [(REMOTE_BLOCK, REMOTE_BLOCK + 100)]
    requests.clear()
    for _ in range(2):
        files.read_once(0, 7, 100)
    assert requests == [(7, 107)] * 2


def test_an_error_of_the_storages_own_is_an_os_error(remote, monkeypatch):
    files = Files(list_files(put(f"{remote}/x", b"0123456789")))

    def broken(*_, **__):
        raise RuntimeError("token expired")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", broken)
    with pytest.raises(OSError, match="RuntimeError: token expired"):
        files.read(0, 0, 5)
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "info", broken)
    with pytest.raises(UserError, match="cannot be listed: token expired"):
        list_files(f"{remote}/x")


def test_a_fingerprint_changes_with_a_file_and_with_their_order(folder):
    names = [put(f"{folder}/{name}", name.encode()) for name in "xy"]
    x, y = list_files(f"{folder}/[xy]")
    assert fingerprint([x, y]) == fingerprint(list_files(f"{folder}/[xy]"))
    put(names[1], b"longer")
    prints = [fingerprint(files) for files in ([x, y], [y, x], [x], list_files(f"{folder}/[xy]"))]
    assert len(set(prints)) == 4


def test_local_files_are_closed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_OPEN_FILES", 2)
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(b"%d" % number * 100)
    files = Files(list_files(f"{tmp_path}/*"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda n: files.read(n % 8, n % 50, 50), range(1000)))
    assert read == [b"%d" % (n % 8) * 50 for n in range(1000)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("x.tar", "/data", "/data/x.tar"),
        ("x.tar", "", "x.tar"),
        ("/x.tar", "gs://bucket", "/x.tar"),
        ("x.tar", "gs://bucket/", "gs://bucket/x.tar"),
        ("s3://other/x.tar", "/data", "s3://other/x.tar"),
        ("~/x.tar", "gs://bucket", str(pathlib.Path.home() / "x.tar")),
    ],
)
def test_relative_paths_start_from_the_root(path, root, expected):
    assert storage.resolve(path, root) == expected


def test_a_chunk_is_read_once_however_many_threads_ask():
    cache, reads, asked = ChunkCache(100), [], threading.Barrier(8)

    def get(name: int) -> str:
        asked.wait()

        def read() -> tuple[str, int]:
            reads.append(name)
            return f"chunk {name}", 10

        return cache.get(name, read)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(get, [n % 2 for n in range(80)])) == [f"chunk {n % 2}" for n in range(80)]
    assert sorted(reads) == [0, 1]


def test_the_chunks_used_last_are_kept_up_to_the_limit():
    cache, reads = ChunkCache(30), []

    def get(name: str, size: int = 10) -> None:
        cache.get(name, lambda: (reads.append(name) or name, size))

    for name in "abcabd":  # d drives out c
        get(name)
    for name in "abdc":  # c drives out a
        get(name)
    get("large", 50)  # drives out all
    get("large", 50)
    get("c")
    assert reads == ["a", "b", "c", "d", "c", "large", "c"]


def test_a_chunk_that_could_not_be_read_is_tried_again():
    cache = ChunkCache(30)

    def broken() -> tuple[str, int]:
        raise OSError("no network")

    for _ in range(2):
        with pytest.raises(OSError, match="no network"):
            cache.get("a", broken)
    assert cache.get("a", lambda: ("a", 10)) == "a"
