"""The index of a set of tars: built once, resumable, cached, and opened without being read."""

import concurrent.futures
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
from tar_files import numbered, write_tar

from jaxclip.data.index import tar as tar_index
from jaxclip.data.index import tar_build
from jaxclip.data.index.checked import VERIFIED_WHOLE, CheckedFile
from jaxclip.data.index.keep import keep
from jaxclip.data.record import Record
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.storage import Files, list_files
from jaxclip.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def scans(monkeypatch) -> list[str]:
    """The names of the tars that are walked."""
    names = []
    scan = tar_build.scan

    def noted(files, number):
        names.append(files[number].name)
        return scan(files, number)

    monkeypatch.setattr(tar_build, "scan", noted)
    return names


def shards(folder: pathlib.Path, count: int) -> str:
    """Writes so many shards of 1, 2, ... records with numbers that go through all of them; their pattern."""
    folder.mkdir(exist_ok=True)
    first = 0
    for number in range(count):
        write_tar(folder / f"{number:02d}.tar", numbered(first, number + 1))
        first += number + 1
    return str(folder / "*.tar")


def captions(source: TarShards) -> list[int]:
    return [int(record.captions[0]) for record in source.read(range(len(source)))]


def kept(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_tar_is_indexed_once_and_again_when_it_changes(tmp_path, scans):
    path = write_tar(tmp_path / "x.tar", numbered(0, 3))
    first = TarShards(str(path)).read([0, 1, 2])
    assert TarShards(str(path)).read([0, 1, 2]) == first
    assert scans == ["x.tar"]
    write_tar(path, numbered(5, 4))
    assert [record.captions for record in TarShards(str(path)).read([0, 3])] == [("5",), ("8",)]
    assert scans == ["x.tar"] * 2
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(TarShards(str(path))) == 4
    assert scans == ["x.tar"] * 3


def test_relative_paths_in_two_folders_have_two_indices(tmp_path, monkeypatch):
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x.tar", numbered(number, 1))
        os.utime(tmp_path / name / "x.tar", ns=(0, 0))
        monkeypatch.chdir(tmp_path / name)
        assert captions(TarShards("x.tar")) == [number]


def test_one_index_of_all_shards_is_kept_and_nothing_beside_them(tmp_path, cache, scans, capfd):
    pattern = shards(tmp_path / "data", 7)
    (tmp_path / "data/03.tar").write_bytes(b"")  # an empty one among them
    expected = [number for number in range(28) if not 6 <= number < 10]
    for _ in range(2):
        assert captions(TarShards(pattern)) == expected
    assert sorted(scans) == [f"{number:02d}.tar" for number in range(7)]
    assert len(os.listdir(tmp_path / "data")) == 7
    assert len(kept(cache)) == 1
    assert capfd.readouterr().err == ""  # no progress bar if there is nothing to wait for


def test_an_interrupted_build_goes_on_where_it_was(tmp_path, cache, monkeypatch, scans):
    pattern = shards(tmp_path / "data", 6)
    scan = tar_build.scan

    others = threading.Semaphore(0)

    def interrupted(files, number):
        if number == 4:
            for _ in range(5):
                assert others.acquire(timeout=60)
            raise KeyboardInterrupt
        part = scan(files, number)
        others.release()
        return part

    with monkeypatch.context() as patch:
        patch.setattr(tar_build, "scan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            TarShards(pattern)
    scans.clear()
    assert captions(TarShards(pattern)) == list(range(21))
    assert scans == ["04.tar"]
    assert len(kept(cache)) == 1


def test_several_processes_make_the_same_index(tmp_path, cache, monkeypatch, scans):
    pattern = shards(tmp_path / "data", 9)
    os.truncate(tmp_path / "data/08.tar", 2048)
    expected = TarShards(pattern).read(range(37))
    (index,) = kept(cache)
    made = index.read_bytes()
    index.unlink()
    scans.clear()
    monkeypatch.setattr(tar_build, "_WORTH_PROCESSES", 1)
    source = TarShards(pattern)
    assert len(source) == 37 and source.read(range(37)) == expected
    assert kept(cache) == [index] and index.read_bytes() == made
    assert not scans  # here nothing was left to do


def test_what_other_processes_cannot_do_is_done_here(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(tar_build, "_WORTH_PROCESSES", 1)
    pattern = shards(tmp_path / "data", 5)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        assert captions(TarShards(pattern)) == list(range(15))
    (tmp_path / "data/03.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(UserError, match=r"03\.tar is not a tar"):
        TarShards(pattern)
    shards(tmp_path / "data", 5)
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "data/03.tar"))  # a file: nothing can be kept
    assert captions(TarShards(pattern)) == list(range(15))


def test_processes_that_index_the_same_tars_at_once_agree(tmp_path, cache):
    pattern = shards(tmp_path / "data", 12)
    program = (
        "import sys; from jaxclip.data.sources.tar import TarShards; s = TarShards(sys.argv[1]); print(s.read([0, 77]))"
    )
    commands = [[sys.executable, "-c", program, pattern]] * 3
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert "11.tar:077" in said[0] and said[1:] == said[:2]
    assert len([path for path in kept(cache) if path.parent.name == "tar-index"]) == 1


def test_if_the_cache_is_not_writable_the_index_stays_in_memory(tmp_path, cache):
    pattern = shards(tmp_path / "data", 3)
    cache.write_text("a file: nothing can be written below it")
    assert captions(TarShards(pattern)) == list(range(6))
    assert kept(tmp_path) == [cache, *(tmp_path / f"data/0{number}.tar" for number in range(3))]


@pytest.mark.parametrize("limit", [4096, 300], ids=["parts-fit", "nothing-fits"])
def test_if_the_disk_is_full_the_index_stays_in_memory(tmp_path, cache, limit):
    pattern = shards(tmp_path / "data", 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # writing more to a file fails, as on a full disk
    try:
        source = TarShards(pattern)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert captions(source) == list(range(210))
    assert all(path.parent.name == "parts" and path.suffix == ".index" for path in kept(cache))


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self._path,)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda good, trap: b"", id="empty"),
        pytest.param(lambda good, trap: b"PK\x03\x04 nonsense", id="nonsense"),
        pytest.param(lambda good, trap: good[:20], id="cut-in-the-head"),
        pytest.param(lambda good, trap: good[: len(good) // 2], id="cut"),
        pytest.param(lambda good, trap: good[:-1], id="cut-by-a-byte"),
        pytest.param(lambda good, trap: good + b"\0", id="too-long"),
        pytest.param(lambda good, trap: good.replace(b'"format": ', b'"format":9'), id="other-format"),
        pytest.param(lambda good, trap: good.replace(b"flaws", b"flavs"), id="other-fields"),
        pytest.param(lambda good, trap: good.replace(b'"shards": 3', b'"shards":-3'), id="negative-shards"),
        pytest.param(lambda good, trap: good.replace(b'"shards": 3', b'"shards": 2'), id="other-shards"),
        pytest.param(lambda good, trap: good.replace(b'"shards": 3', b'"shards": 3e9'), id="endless-shards"),
        pytest.param(lambda good, trap: good[:18] + b"\xff" * 8 + good[26:], id="endless-head"),
        pytest.param(lambda good, trap: pickle.dumps(trap), id="pickle"),
    ],
)
@pytest.mark.parametrize("checksums", [False, True], ids=["wrong-checksums", "right-checksums"])
def test_a_broken_index_is_made_anew_and_never_executed(tmp_path, cache, scans, spoil, checksums):
    pattern = shards(tmp_path / "data", 3)
    TarShards(pattern)
    (index,) = kept(cache)
    content, trap = CheckedFile(index), tmp_path / "trap"
    good, file = content.read(0, content.size), index.read_bytes()
    if checksums:
        keep(index, lambda writer: writer.write(spoil(good, Trap(trap))))
    else:
        index.write_bytes(spoil(file, Trap(trap)))
    assert captions(TarShards(pattern)) == list(range(6))
    assert len(scans) == 6 and index.read_bytes() == file and not trap.exists()


def test_the_bare_index_of_a_billion_records_is_opened_and_looked_up(tmp_path):
    shard_count, per_shard = 10_000, 100_000
    sizes = np.tile(np.array([per_shard, 10 * per_shard, 1000]), (shard_count, 1))
    last = tar_index.Part(
        facts=tar_index.Facts(members=1),
        rows=np.array([(((7, 70), (8, 80), (0, 0), (9, 90)), 4, False)] * per_shard, tar_index.ROW),
        names=np.frombuffer(b"last" * (10 * per_shard // 4), np.uint8),
        chunk_ends=np.arange(100, per_shard + 1, 100),
    )
    place = tmp_path / "x.index"

    def fill(file):  # with a hole: no more than the last shard and the checksums take room on disk
        tar_index.write_head(file, [last.facts] * shard_count, sizes)
        *_, end = tar_index.column_places(file.tell(), sizes)
        tar_index.write_part(file, last, end)

    assert keep(place, fill)
    index = tar_index.TarIndex.open(place, shard_count)
    assert len(index) == 1_000_000_000 and index.facts.members == shard_count
    assert index.row(0) == (0, b"", *[(0, 0)] * 4, False)
    assert index.row(999_900_000) == (9999, b"last", (7, 70), (8, 80), (0, 0), (9, 90), False)
    assert index.chunk_ends[[-2, -1]].tolist() == [999_999_900, 1_000_000_000]


def test_looking_up_records_takes_no_memory(tmp_path):
    part = tar_index.Part(
        facts=tar_index.Facts(members=1),
        rows=np.array([(((7, 70), (8, 80), (0, 0), (9, 90)), 0, False)] * 1_000_000, tar_index.ROW),
        names=np.zeros(40_000_000, np.uint8),
        chunk_ends=np.array([1_000_000]),
    )
    part.rows["name_end"] = np.arange(40, 40_000_001, 40)
    place = tmp_path / "x.index"
    assert keep(place, lambda file: tar_index.write(file, [part.facts], np.array([part.sizes]), [part]))
    assert place.stat().st_size > VERIFIED_WHOLE
    del part
    look_up = """if True:
        import pathlib, sys
        from jaxclip.data.index.tar import TarIndex
        index = TarIndex.open(pathlib.Path(sys.argv[1]), 1)
        held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
        before = held()
        for record in range(0, 1_000_000, 100):
            assert index.row(record).image == (7, 70)
        print(held() - before)
    """
    if not pathlib.Path("/proc/self/statm").exists():
        pytest.skip("the memory that a process holds is read from /proc")
    ran = subprocess.run([sys.executable, "-c", look_up, place], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 10e6 < place.stat().st_size


def test_an_index_that_is_cut_while_in_use_ends_with_a_line(tmp_path, cache):
    source = TarShards(shards(tmp_path / "data", 3))
    (index,) = kept(cache)
    os.truncate(index, 100)
    with pytest.raises(UserError, match=rf"^the index {index} is damaged: start again, it is made anew$"):
        source.read([5])
    assert not index.exists()


def test_an_index_that_goes_while_in_use_serves_on(tmp_path, cache):
    source = TarShards(shards(tmp_path / "data", 3))
    kept(cache)[0].unlink()
    assert captions(source) == list(range(6))


def test_threads_look_up_records_at_once(tmp_path):
    index = tar_build.load_index(Files(list_files(shards(tmp_path / "data", 20))))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(index.row, list(range(210)) * 20))
    assert [int(row.name) for row in rows] == list(range(210)) * 20


def test_members_apart_and_repeated_are_one_record_whatever_the_number(tmp_path):
    order = np.random.default_rng(0).permutation(600)
    members = [(f"{n // 3}.{('jpg', 'txt', 'cls')[n % 3]}", b"%d" % (n // 3)) for n in order]
    again = [(f"{n}.jpg", b"again %d" % n) for n in range(0, 200, 2)]
    source = TarShards(str(write_tar(tmp_path / "x.tar", members + again)))
    records = source.read(range(len(source)))
    assert [record.label for record in records] == list(dict.fromkeys((order // 3).tolist()))
    for record in records:
        n = record.label
        assert record == Record(b"%d" % n if n % 2 else b"again %d" % n, (str(n),), f"x.tar:{n}", n)
