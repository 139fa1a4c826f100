"""Tars in remote storage (fsspec's memory://): the same records as from local ones, in few large requests."""

import pathlib

import fsspec
import fsspec.implementations.memory
import numpy as np
import pytest
from tar_files import numbered, write_tar

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.storage import REMOTE_BLOCK
from jaxclip.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def requests(monkeypatch) -> list[tuple[str, int, int]]:
    """The (name, first byte, size) of every fetch."""
    ranges = []
    cat_file = fsspec.implementations.memory.MemoryFileSystem.cat_file

    def noted(self, path, start=None, end=None, **options):
        data = cat_file(self, path, start, end, **options)
        ranges.append((path.rpartition("/")[2], start, len(data)))
        return data

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", noted)
    return ranges


def upload(tmp_path: pathlib.Path, remote: str, name: str, members) -> int:
    """Writes a tar locally and remotely; its size."""
    data = write_tar(tmp_path / name, members).read_bytes()
    fsspec.filesystem("memory").pipe_file(f"{remote}/{name}", data)
    return len(data)


def large(first: int, count: int, size: int) -> list[tuple[str, bytes]]:
    return [
        member
        for n in range(first, first + count)
        for member in ((f"{n}.jpg", bytes([n]) * (size + n)), (f"{n}.txt", b"%d" % n))
    ]


def test_remote_tars_hold_what_local_ones_do(tmp_path, remote):
    for shard in range(3):
        upload(tmp_path, remote, f"s-{shard}.tar", numbered(4 * shard, 4))
    for pattern in ("s-*.tar", "s-{0..2}.tar", "s-{1..2}.tar", "s-1.tar"):
        local, far = TarShards(str(tmp_path / pattern)), TarShards(f"{remote}/{pattern}")
        assert far.read(range(len(far))) == local.read(range(len(local)))
        assert local.chunk_ends is None
        assert far.chunk_ends.tolist() == list(range(4, len(far) + 1, 4))  # a shard of less than a chunk is one


def test_headers_far_apart_are_fetched_without_what_lies_between(tmp_path, remote, requests):
    size = upload(tmp_path, remote, "x.tar", large(0, 8, 1_500_000))
    assert len(TarShards(f"{remote}/x.tar")) == 8
    assert sum(length for _, _, length in requests) < 0.02 * size
    assert len(requests) <= 10


def test_headers_close_together_are_fetched_by_the_block(tmp_path, remote, requests):
    size = upload(tmp_path, remote, "x.tar", large(0, 200, 50_000))
    assert len(TarShards(f"{remote}/x.tar")) == 200
    assert sum(length for _, _, length in requests) <= size
    assert len(requests) <= 2 + size // REMOTE_BLOCK + 1


def test_the_index_of_remote_tars_is_kept_and_opening_asks_for_nothing(tmp_path, remote, requests):
    for shard in range(3):
        upload(tmp_path, remote, f"s-{shard}.tar", numbered(4 * shard, 4))
    TarShards(f"{remote}/s-*.tar")
    requests.clear()
    source = TarShards(f"{remote}/s-*.tar")
    assert len(source) == 12 and not requests
    upload(tmp_path, remote, "s-1.tar", numbered(50, 2))
    assert [record.captions for record in TarShards(f"{remote}/s-*.tar").read([4, 5])] == [("50",), ("51",)]


def test_a_chunk_is_a_run_of_neighbors_that_comes_with_few_requests(tmp_path, remote, requests):
    for shard in range(2):
        upload(tmp_path, remote, f"s-{shard}.tar", large(100 * shard, 60, 700_000))
    source = TarShards(f"{remote}/s-*.tar")
    ends = source.chunk_ends
    assert ends[-1] == 120 and 60 in ends and np.all(np.diff(ends, prepend=0) > 0)
    requests.clear()
    first, last = ends[0], ends[1]
    records = source.read(range(first, last))
    assert [int(record.captions[0]) for record in records] == list(range(first, last))
    read = sum(len(record.image) for record in records)
    assert 3 * REMOTE_BLOCK < read < 5 * REMOTE_BLOCK
    assert sum(length for *_, length in requests) < 1.5 * read and len(requests) <= 6
    requests.clear()
    assert source.read(range(first, last)) == records and not requests


def test_a_remote_tar_that_shrinks_or_goes_is_skipped(tmp_path, remote):
    for shard in range(2):
        upload(tmp_path, remote, f"{shard}.tar", numbered(0, 3))
    source = TarShards(f"{remote}/*.tar")
    fsspec.filesystem("memory").pipe_file(f"{remote}/0.tar", bytes(100))
    fsspec.filesystem("memory").rm(f"{remote}/1.tar")
    assert source.read([2, 3]) == [Skip("unreadable shard", "0.tar:002"), Skip("unreadable shard", "1.tar:000")]


def test_what_is_no_tar_is_an_error_naming_it(remote):
    fsspec.filesystem("memory").pipe_file(f"{remote}/x.tar", b"not a tar" * 1000)
    with pytest.raises(UserError, match=r"memory://.*/x\.tar is not a tar"):
        TarShards(f"{remote}/x.tar")


def test_a_cut_remote_tar_gives_its_whole_members(tmp_path, remote, caplog):
    upload(tmp_path, remote, "x.tar", numbered(0, 3))
    fsspec.filesystem("memory").pipe_file(f"{remote}/x.tar", (tmp_path / "x.tar").read_bytes()[:4700])
    source = TarShards(f"{remote}/x.tar")
    assert [type(record) for record in source.read(range(len(source)))] == [Record] * 2
    assert len(caplog.messages) == 1 and "is cut short" in caplog.messages[0]
