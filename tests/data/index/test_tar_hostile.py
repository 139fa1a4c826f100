"""Hostile tars: no code run, no file written outside the cache, no crash, bounded memory."""

import contextlib
import faulthandler
import os
import pathlib
import re
import sys
import tracemalloc

import pytest
from hostile_tars import ARCHIVES, END, FAMILIES, GOOD
from tar_files import header, member, pax, write_tar

from jaxclip.data.index import tar_scan
from jaxclip.data.index.tar_build import load_index
from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.storage import Files, list_files
from jaxclip.errors import UserError

REASONS = {"no caption", "unreadable shard", "image file too large", "caption too large"}
pytestmark = pytest.mark.hostile
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_ACTS = re.compile(
    r"exec|compile|import|pickle\.find_class|marshal\.|ctypes\.|socket\.connect|subprocess\.Popen"
    r"|os\.(system|exec|fork|forkpty|posix_spawn|startfile|link|symlink|chmod|chown|truncate|setxattr)|shutil\..*"
)
_noted: list[tuple[str, str]] | None = None


def _note(event: str, arguments: tuple) -> None:
    """Notes what acts on the world; Python reports it here (PEP 578). A hook stays for the life of the process."""
    if _noted is None:
        return
    if event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename") or event == "open" and arguments[2] & _WRITES:
        _noted.append((event, str(arguments[0])))
    elif _ACTS.fullmatch(event):
        _noted.append((event, str(arguments)))


sys.addaudithook(_note)


@contextlib.contextmanager
def acts():
    """A list of (event, path or arguments) of the audited operations within."""
    global _noted
    _noted = done = []
    try:
        yield done
    finally:
        _noted = None


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty working directory, some way down in a folder that is searched afterwards."""
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    # What is imported on first use is imported here.
    TarShards(str(write_tar(tmp_path / "other.tar", [("a.jpg", b"!"), ("a.json", b'{"caption": "a"}')])))
    faulthandler.dump_traceback_later(1200, exit=True)  # a hang ends the tests with a traceback
    yield folder
    faulthandler.cancel_dump_traceback_later()


def files_outside(tmp_path: pathlib.Path) -> dict[str, tuple]:
    """Everything below the folder but for the cache, with sizes and times."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in tmp_path.rglob("*")
        if "cache" not in path.relative_to(tmp_path).parts[:1]
    }


def test_there_are_hostile_tars_enough():
    assert len(ARCHIVES) >= 200 and len(set(ARCHIVES.values())) > 0.9 * len(ARCHIVES)


def faults(folder: pathlib.Path, caplog, content: bytes) -> list[str]:
    """What is wrong with how a tar is opened and read to its end; nothing if it is refused or used as it should be."""
    path, cache = folder / "x.tar", folder / "cache"
    path.write_bytes(content)
    caplog.clear()
    before = files_outside(folder)
    found, records, error = [], None, ""
    with acts() as done:
        try:
            source = TarShards(str(path))
            records = source.read(range(len(source)))
        except UserError as raised:
            error = str(raised)
        except Exception as raised:
            return [repr(raised)]
    if files_outside(folder) != before:
        found.append("files were written")
    harmless = ("open", "os.mkdir", "os.remove", "os.rmdir", "os.rename")
    found += [f"{act} {what}" for act, what in done if act not in harmless or not what.startswith(str(cache))]
    if records is None and not (error.isprintable() and str(path) in error):
        found.append(f"the error {error!r}")
    for record in records or ():
        sound = record.reason in REASONS if isinstance(record, Skip) else record.image in content
        if not (sound and record.key.isprintable() and record.key.startswith("x.tar:")):
            found.append(f"the record {record!r}"[:200])
    found += [f"the message {line!r}"[:200] for line in caplog.messages if not line.isprintable() or len(line) >= 1000]
    if content.startswith(GOOD) and (not records or records[0] != Record(b"!", ("a good one",), "x.tar:good", None)):
        found.append("the good record is lost")
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_hostile_tars_do_no_harm(tmp_path, caplog, family):
    found = {name: wrong for name, content in family() if (wrong := faults(tmp_path, caplog, content))}
    assert not found


def test_members_left_out_of_hostile_tars_are_reported(tmp_path, caplog):
    said = {
        "kind-49-5": "1 links, devices or sparse files are ignored",
        "size-0-0": "has a damaged header at byte 2048",
        "size-3-0": "is cut short",
        "chain-x": "has a damaged header at byte",
        "pax-name-4097": "1 links, devices or sparse files are ignored",
        "pax-size-3": "is cut short",
        "sparse-3": "1 links, devices or sparse files are ignored",
    }
    for name, message in said.items():
        caplog.clear()
        path = tmp_path / "x.tar"
        path.write_bytes(ARCHIVES[name])
        TarShards(str(path))
        assert message in " ".join(caplog.messages), name


def test_members_behind_two_tebibytes_are_left_out(tmp_path, caplog):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:  # with a hole
        file.write(GOOD + header(b"huge.bin", b"\x80" + (2 << 40).to_bytes(11, "big")))
        file.seek(2 << 40, os.SEEK_CUR)
        file.write(member(b"behind.jpg", b"!") + member(b"behind.txt", b"behind") + END)
    source = TarShards(str(path))
    assert source.read(range(len(source))) == [Record(b"!", ("a good one",), "x.tar:good", None)]
    assert any("is larger than 2 TiB: only the 2 complete members" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("members", "most_bytes"),
    [
        pytest.param((header(b"%06d.jpg" % n) for n in range(20_000)), 200, id="empty-images"),
        pytest.param((header(b"%06d.txt" % n) for n in range(20_000)), 200, id="empty-captions"),
        pytest.param((header(b"x.%06d" % n) for n in range(20_000)), 60, id="one-name"),
        pytest.param((pax(path=b"%05000d.jpg" % n) + header() for n in range(1_000)), 400, id="long-names"),
    ],
)
def test_the_members_of_one_tar_take_little_memory(tmp_path, members, most_bytes):
    path, count = tmp_path / "x.tar", 0
    with path.open("wb") as file:
        for data in members:
            file.write(data)
            count += 1
        file.write(END)
    files = Files(list_files(str(path)))
    tracemalloc.start()
    try:
        load_index(files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5e5 + most_bytes * count


def test_a_tar_of_too_many_members_gives_the_first(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tar_scan, "_MOST_RECORDS", 10)
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(member(b"%d.jpg" % n, b"!") + member(b"%d.txt" % n, b"t") for n in range(20)) + END)
    assert len(TarShards(str(path))) == 10
    assert caplog.messages == [f"{path} has too many members: only the 20 complete members before that are used"]
