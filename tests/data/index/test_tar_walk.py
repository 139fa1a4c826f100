"""The enumeration of tar members: valid tars of every format, truncated and damaged ones."""

import io
import os
import pathlib
import tarfile

import pytest
from tar_files import numbered, special, write_tar

from jaxclip.data.index import tar_walk
from jaxclip.data.index.tar_build import load_index
from jaxclip.data.record import Record
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.storage import Files, list_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """Where indices are kept in these tests."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXCLIP_CACHE", str(folder))
    return folder


def walked(path: pathlib.Path) -> list[tuple[bytes, int | None, int]]:
    return list(tar_walk.walk(Files(list_files(str(path))), 0))


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_members_lie_where_tarfile_finds_them(tmp_path, form):
    names = ["a.jpg", "./b/c.png", f"{'d' * 60}/{'e' * 60}/f.webp", "sub.dir/g.jpeg", "sub.dir/none", "._a.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["h" * 300 + ".jpg", "sp ace/\u732b.jpg", "i" * 90 + "/" + "\u732b" * 90 + ".jpg"]
    members = []
    for number, name in enumerate(names):
        info = tarfile.TarInfo(name)
        info.size = 100 * number if number != 2 else 512
        if form == tarfile.PAX_FORMAT:
            info.mtime = 1e9 + 0.5  # what webdataset's writer does: it makes a pax header for every member
        members.append(info)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as file:
        for number, info in enumerate(members):
            file.addfile(info, io.BytesIO(bytes([number]) * info.size))
        folder = tarfile.TarInfo("sub.dir")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    with tarfile.open(path) as file:
        expected = [
            (os.fsencode(member.name), member.offset_data // 512, member.size) for member in file if member.isreg()
        ]
    assert walked(path) == expected
    index = load_index(Files(list_files(str(path))))
    assert [index.row(record).name.decode() for record in range(len(index))] == [
        name.rpartition(".")[0] for name in names if name not in ("sub.dir/none", "._a.jpg")
    ]


def test_sizes_in_base_256_and_in_pax_headers_are_understood(tmp_path):
    assert tar_walk._number(b"\x80" + (9 << 30).to_bytes(11, "big")) == 9 << 30
    assert tar_walk._number(b"00000000017\0") == 15
    assert tar_walk._number(b"   17 \0    ") == 15
    assert tar_walk._number(b"0000000019\0\0") is None
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": "5", "comment": "x=y\nz"}
    path = tmp_path / "x.tar"
    header = bytearray(info.tobuf(tarfile.PAX_FORMAT))  # its own size field is 0
    path.write_bytes(bytes(header) + b"12345".ljust(512, b"\0") + bytes(1024))
    assert walked(path) == [(b"a.jpg", len(header) // 512, 5)]


def test_an_old_sparse_file_is_stepped_over(tmp_path):
    header = bytearray(special("s.jpg", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[482] = b"00000000005\0", 1  # five bytes of data, and one more block of the map
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    rest = write_tar(tmp_path / "rest.tar", [("a.jpg", b"!"), ("a.txt", b"a")]).read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(512) + b"12345".ljust(512, b"\0") + rest)
    assert TarShards(str(path)).read([0]) == [Record(b"!", ("a",), "x.tar:a")]


def whole(tmp_path) -> bytes:
    return write_tar(tmp_path / "whole.tar", numbered(0, 3), tarfile.USTAR_FORMAT).read_bytes()


# Each record of `numbered(0, 3)` is 512 + 512 bytes for the image (300 or 600 bytes) and 512 + 512 for the caption.
@pytest.mark.parametrize(
    ("end", "keys", "members"),
    [
        pytest.param(2048 + 512 + 100, ["000"], 2, id="in-an-image"),
        pytest.param(2048 + 1024 + 100, ["000", "001"], 3, id="in-a-header"),
        pytest.param(2048 + 1024 + 512, ["000", "001"], 3, id="in-a-caption"),
        pytest.param(2 * 2048, ["000", "001"], 4, id="between-records"),
    ],
)
def test_a_cut_tar_gives_its_whole_members_and_is_reported(tmp_path, caplog, end, keys, members):
    path = tmp_path / "cut.tar"
    path.write_bytes(whole(tmp_path)[:end])
    for _ in range(2):  # the second time from the kept index
        caplog.clear()
        source = TarShards(str(path))
        assert [record.key.partition(":")[2] for record in source.read(range(len(source)))] == keys
        assert caplog.messages == [f"{path} is cut short: only the {members} complete members before that are used"]
    assert isinstance(source.read([0])[0], Record)


def test_a_tar_without_padding_after_its_last_member_loses_nothing(tmp_path, caplog):
    path = tmp_path / "cut.tar"
    path.write_bytes(whole(tmp_path)[: 3 * 2048 - 500])
    assert len(TarShards(str(path))) == 3
    assert caplog.messages == [f"{path} is cut short: only the 6 complete members before that are used"]


def test_a_damaged_header_is_reported_and_ends_the_tar(tmp_path, caplog):
    data = bytearray(whole(tmp_path))
    data[2048 + 10] ^= 255
    path = tmp_path / "damaged.tar"
    path.write_bytes(data)
    assert [record.key for record in TarShards(str(path)).read([0])] == ["damaged.tar:000"]
    assert caplog.messages == [
        f"{path} has a damaged header at byte 2048: only the 2 complete members before that are used"
    ]
