"""Tar shards: what is a record, where it lies, and what is said of shards that cannot be used."""

import concurrent.futures
import io
import json
import logging
import os
import pathlib
import tarfile

import numpy as np
import pytest

from jaxclip.data import tar, tar_index
from jaxclip.data.sources import Record, Skip
from jaxclip.data.tar import TarShards
from jaxclip.errors import UserError

SHARED = next(
    (up / "shared/data" for up in pathlib.Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None
)
with_shared = pytest.mark.skipif(SHARED is None, reason="no shared/data beside the repository")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """The cache folder for indexes that cannot lie beside their tars; never the person's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXCLIP_CACHE", str(folder))
    return folder


def write_tar(path: pathlib.Path, members, form=tarfile.PAX_FORMAT) -> pathlib.Path:
    """Writes a tar of (name, bytes) pairs and TarInfos."""
    with tarfile.open(path, "w", format=form) as file:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.jpg"
    return info


def only(path) -> Record | Skip:
    source = TarShards(str(path))
    assert len(source) == 1
    return source.read([0])[0]


@pytest.mark.parametrize(
    ("members", "captions", "label"),
    [
        pytest.param([("a.jpg", b"!"), ("a.txt", b" a cat\n")], ("a cat",), None, id="jpg-txt"),
        pytest.param([("a.JPEG", b"!"), ("a.TXT", b"a cat")], ("a cat",), None, id="capitals"),
        pytest.param([("a.png", b"!"), ("a.json", b'{"caption": "a cat"}')], ("a cat",), None, id="png-json"),
        pytest.param([("a.webp", b"!"), ("a.json", b'{"text": "a cat"}')], ("a cat",), None, id="json-text"),
        pytest.param([("a.jpg", b"!"), ("a.json", b'{"captions": ["x", 3, " y "]}')], ("x", "y"), None, id="json-list"),
        pytest.param(
            [("a.jpg", b"!"), ("a.json", b'{"caption": "no"}'), ("a.txt", b"yes")], ("yes",), None, id="txt-over-json"
        ),
        pytest.param([("a.jpg", b"!"), ("a.cls", b"7\n")], (), 7, id="label-only"),
        pytest.param([("a.jpg", b"!"), ("a.cls", b"7"), ("a.txt", b"a cat")], ("a cat",), 7, id="label-and-caption"),
        pytest.param([("a.jpg", b"!"), ("a.cls", b"cat"), ("a.txt", b"a cat")], ("a cat",), None, id="label-no-number"),
        pytest.param([("a.txt", b"a cat"), ("b.txt", b"b"), ("a.jpg", b"!")], ("a cat",), None, id="apart"),
        pytest.param(
            [("a.jpg", b"!"), ("a.txt", "a caf\u00e9 \u732b".encode())], ("a caf\u00e9 \u732b",), None, id="utf-8"
        ),
        pytest.param([("a.jpg", b"!"), ("a.txt", b"caf\xe9")], ("caf\ufffd",), None, id="latin-1"),
        pytest.param([("a.jpg", b"!"), ("a.json", b'{"caption": "x\\ud800"}')], ("x?",), None, id="half-a-surrogate"),
        pytest.param([("a.seg.png", b"?"), ("a.jpg", b"!"), ("a.txt", b"a")], ("a",), None, id="second-dot"),
    ],
)
def test_members_make_a_record(tmp_path, members, captions, label):
    record = only(write_tar(tmp_path / "x.tar", members))
    assert record == Record(b"!", captions, "x.tar:a", label)


@pytest.mark.parametrize(
    "caption",
    [
        pytest.param([], id="none"),
        pytest.param([("b.txt", b" \n")], id="blank"),
        pytest.param([("b.json", b'{"url": "x"}')], id="json-without-field"),
        pytest.param([("b.json", b'{"caption": null, "text": 3, "captions": []}')], id="json-without-text"),
        pytest.param([("b.json", b'["a"]')], id="json-no-object"),
        pytest.param([("b.json", b'{"caption": ')], id="json-broken"),
        pytest.param([("b.json", b"[" * 100_000)], id="json-deep"),
        pytest.param([("b.cls", b"-1")], id="negative-label"),
    ],
)
def test_a_picture_without_caption_and_label_is_skipped(tmp_path, caption):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"!"), ("a.txt", b"a"), ("b.jpg", b"!"), *caption])
    assert TarShards(str(path)).read([1, 0]) == [Skip("no caption", "x.tar:b"), Record(b"!", ("a",), "x.tar:a")]


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
    assert list(tar_index._members(path)) == expected
    index = tar_index.scan(path)
    assert [index.key(row) for row in range(len(index))] == [
        name.rpartition(".")[0] for name in names if name not in ("sub.dir/none", "._a.jpg")
    ]


def test_sizes_in_base_256_and_in_pax_headers_are_understood(tmp_path):
    assert tar_index._number(b"\x80" + (9 << 30).to_bytes(11, "big")) == 9 << 30
    assert tar_index._number(b"00000000017\0") == 15
    assert tar_index._number(b"   17 \0    ") == 15
    assert tar_index._number(b"0000000019\0\0") is None
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": "5", "comment": "x=y\nz"}
    path = tmp_path / "x.tar"
    header = bytearray(info.tobuf(tarfile.PAX_FORMAT))  # whose own size field says 0
    path.write_bytes(bytes(header) + b"12345".ljust(512, b"\0") + bytes(1024))
    assert list(tar_index._members(path)) == [(b"a.jpg", len(header) // 512, 5)]


def test_links_devices_and_sparse_files_are_counted_and_ignored(tmp_path, caplog):
    sparse = tarfile.TarInfo("s.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg"}
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    members = [special(f"l{number}.jpg", kind) for number, kind in enumerate(kinds)]
    path = write_tar(
        tmp_path / "x.tar", [*members, sparse, ("a.jpg", b"!"), ("a.txt", b"a"), special("d", tarfile.DIRTYPE)]
    )
    assert only(path).key == "x.tar:a"
    assert caplog.messages == [f"{path}: 6 links, devices or sparse files are ignored"]


def test_an_old_sparse_file_is_stepped_over(tmp_path):
    header = bytearray(special("s.jpg", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[482] = b"00000000005\0", 1  # five bytes of data, and one more block of the map
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    rest = write_tar(tmp_path / "rest.tar", [("a.jpg", b"!"), ("a.txt", b"a")]).read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(512) + b"12345".ljust(512, b"\0") + rest)
    assert only(path) == Record(b"!", ("a",), "x.tar:a")


def test_records_without_a_picture_are_left_out_and_counted(tmp_path, caplog):
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", b"!"), ("a.txt", b"a"), ("b.txt", b"b"), ("c.json", b"{}"), (".jpg", b"?")]
    )
    assert only(path).key == "x.tar:a"
    assert caplog.messages == [f"{path}: 2 records without a picture are left out"]


def numbered(first: int, count: int) -> list[tuple[str, bytes]]:
    return [
        member
        for number in range(first, first + count)
        for member in ((f"{number:03d}.jpg", b"%d" % number * 300), (f"{number:03d}.txt", b"%d" % number))
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s-{00000..00002}.tar", [0, 1, 2, 3, 4, 5]),
        ("s-{00001..00002}.tar", [2, 3, 4, 5]),
        ("s-0000{2..2}.tar", [4, 5]),
        ("s-{000..000}{00..01}.tar", [0, 1, 2, 3]),
        ("s-*.tar", [0, 1, 2, 3, 4, 5]),
        ("s-0000[02].tar", [0, 1, 4, 5]),
        ("s-00001.tar", [2, 3]),
        ("[odd].tar", [90, 91]),
    ],
)
def test_patterns_name_shards_in_order(tmp_path, pattern, expected):
    for shard in range(3):
        write_tar(tmp_path / f"s-{shard:05d}.tar", numbered(2 * shard, 2))
    write_tar(tmp_path / "[odd].tar", numbered(90, 2))
    source = TarShards(str(tmp_path / pattern))
    records = source.read(range(len(source)))
    assert [int(record.captions[0]) for record in records] == expected
    assert [record.image for record in records] == [b"%d" % number * 300 for number in expected]


def test_records_are_read_in_the_order_asked_for(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"s-{shard}.tar", numbered(5 * shard, 5))
    source = TarShards(str(tmp_path / "s-*.tar"))
    ids = [14, 0, 5, 5, 9, 4]
    assert [record.key for record in source.read(np.array(ids))] == [f"s-{i // 5}.tar:{i:03d}" for i in ids]


def test_threads_read_more_shards_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_OPEN_FILES", 2)
    for shard in range(8):
        write_tar(tmp_path / f"s-{shard}.tar", numbered(5 * shard, 5))
    source = TarShards(str(tmp_path / "s-*.tar"))
    ids = np.random.default_rng(0).integers(0, 40, size=(16, 100)).tolist()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for asked, records in zip(ids, pool.map(source.read, ids), strict=True):
            assert [int(record.captions[0]) for record in records] == asked
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def whole(tmp_path) -> bytes:
    return write_tar(tmp_path / "whole.tar", numbered(0, 3), tarfile.USTAR_FORMAT).read_bytes()


# Each record of `numbered(0, 3)` is 512 + 512 bytes for the picture (300 or 600 bytes) and 512 + 512 for the caption.
@pytest.mark.parametrize(
    ("end", "keys", "members"),
    [
        pytest.param(2048 + 512 + 100, ["000"], 2, id="in-a-picture"),
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
        assert caplog.messages == [f"{path} is cut short: only the {members} whole members before are used"]
    assert isinstance(source.read([0])[0], Record)


def test_a_tar_without_padding_after_its_last_member_loses_nothing(tmp_path, caplog):
    path = tmp_path / "cut.tar"
    path.write_bytes(whole(tmp_path)[: 3 * 2048 - 500])
    assert len(TarShards(str(path))) == 3
    assert caplog.messages == [f"{path} is cut short: only the 6 whole members before are used"]


def test_a_damaged_header_is_reported_and_ends_the_tar(tmp_path, caplog):
    data = bytearray(whole(tmp_path))
    data[2048 + 10] ^= 255
    path = tmp_path / "damaged.tar"
    path.write_bytes(data)
    assert only(path).key == "damaged.tar:000"
    assert caplog.messages == [f"{path} has a damaged header at byte 2048: only the 2 whole members before are used"]


def test_an_empty_shard_among_others_is_reported(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", numbered(0, 1))
    empty = write_tar(tmp_path / "b.tar", [])
    assert len(TarShards(str(tmp_path / "*.tar"))) == 1
    assert caplog.messages == [f"{empty} is an empty tar"]


@pytest.mark.parametrize(
    ("content", "pattern", "said"),
    [
        pytest.param(None, "none.tar", ["none.tar", "is not there"], id="missing"),
        pytest.param(None, "none-*.tar", ["none-*.tar", "matches no file"], id="glob-of-nothing"),
        pytest.param(
            [("a.jpg", b"!"), ("a.txt", b"a")], "x-{0..1}.tar", ["x-1.tar", "is not there"], id="range-too-far"
        ),
        pytest.param([("a.jpg", b"!"), ("a.txt", b"a")], "x-{0..99999999999}.tar", ["x-1.tar"], id="huge-range"),
        pytest.param(None, "x-{5..3}.tar", ["x-{5..3}.tar", "matches no file"], id="range-backwards"),
        pytest.param(b"", "x-0.tar", ["x-0.tar", "empty tar"], id="no-bytes"),
        pytest.param([], "x-0.tar", ["x-0.tar", "empty tar"], id="no-members"),
        pytest.param(b"not a tar at all\n" * 100, "x-0.tar", ["x-0.tar", "is not a tar"], id="text"),
        pytest.param(b"short", "x-0.tar", ["x-0.tar", "is not a tar"], id="short-text"),
        pytest.param(b"\x1f\x8b" + bytes(range(256)) * 8, "x-0.tar", ["x-0.tar", "uncompressed"], id="gzip"),
        pytest.param(
            [("a.txt", b"a"), ("a.gif", b"!")], "x-0.tar", ["picture", "found .gif, .txt", ".webp"], id="no-picture"
        ),
        pytest.param(
            [("a.jpg", b"!"), ("a.cap", b"a")], "x-0.tar", ["caption", "found .cap, .jpg", ".txt"], id="no-caption"
        ),
        pytest.param(
            [("a.jpg", b"!"), ("a.json", b'{"url": "u"}')], "x-0.tar", ["caption", ".json (with"], id="json-only"
        ),
    ],
)
def test_unusable_shards_are_one_line_naming_the_culprit(tmp_path, content, pattern, said):
    path = tmp_path / "x-0.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_tar(path, content)
    with pytest.raises(UserError) as raised:
        TarShards(str(tmp_path / pattern))
    message = str(raised.value)
    assert str(tmp_path) in message and "\n" not in message
    for part in said:
        assert part in message


def test_a_folder_named_like_a_tar_is_an_error(tmp_path):
    (tmp_path / "x.tar").mkdir()
    for pattern in ("x.tar", "*.tar"):
        with pytest.raises(UserError, match=r"x\.tar"):
            TarShards(str(tmp_path / pattern))


def counted_scans(monkeypatch) -> list:
    scans = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda path: scans.append(path.name) or scan(path))
    return scans


def test_a_tar_is_indexed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    scans = counted_scans(monkeypatch)
    path = write_tar(tmp_path / "x.tar", numbered(0, 3))
    first = TarShards(str(path)).read([0, 1, 2])
    assert TarShards(str(path)).read([0, 1, 2]) == first
    assert scans == ["x.tar"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.tar", "x.tar.index.npz"]
    write_tar(path, numbered(5, 4))
    assert [record.captions for record in TarShards(str(path)).read([0, 3])] == [("5",), ("8",)]
    assert scans == ["x.tar"] * 2
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(TarShards(str(path))) == 4
    assert scans == ["x.tar"] * 3


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda good: b"", id="empty"),
        pytest.param(lambda good: b"PK\x03\x04 nonsense", id="nonsense"),
        pytest.param(lambda good: good[: len(good) // 2], id="cut"),
        pytest.param(lambda good: good.replace(b"f\0l\0a\0w", b"f\0l\0a\0v"), id="other-fields"),
    ],
)
def test_a_broken_index_is_made_anew(tmp_path, content):
    path = write_tar(tmp_path / "x.tar", numbered(0, 3))
    good = TarShards(str(path)).read([2])
    index = tmp_path / "x.tar.index.npz"
    index.write_bytes(content(index.read_bytes()))
    assert TarShards(str(path)).read([2]) == good
    assert tar_index._restore(index, [1, path.stat().st_size, path.stat().st_mtime_ns]) is not None


def test_an_index_holds_no_pickle(tmp_path):
    path = write_tar(tmp_path / "x.tar", numbered(0, 3))
    TarShards(str(path))
    with np.load(tmp_path / "x.tar.index.npz", allow_pickle=False) as index:
        assert json.loads(str(index["facts"]))["members"] == 6
        assert all(index[name].dtype != object for name in index.files)


def test_the_index_of_a_read_only_folder_goes_to_the_cache(tmp_path, cache, monkeypatch):
    scans = counted_scans(monkeypatch)
    folder = tmp_path / "shards"
    folder.mkdir()
    path = write_tar(folder / "x.tar", numbered(0, 3))
    folder.chmod(0o555)
    try:
        for _ in range(2):
            assert len(TarShards(str(path))) == 3
        assert [file.name for file in folder.iterdir()] == ["x.tar"]
        assert scans == ["x.tar"] and len(list((cache / "tar-index").glob("*.npz"))) == 1
        monkeypatch.setenv("JAXCLIP_CACHE", str(path))  # a file: nothing can be written below it
        assert len(TarShards(str(path))) == 3
    finally:
        folder.chmod(0o755)


def test_a_shard_that_shrinks_or_goes_is_skipped_not_raised(tmp_path, monkeypatch):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", numbered(0, 3))
    source = TarShards(str(tmp_path / "*.tar"))
    os.truncate(tmp_path / "0.tar", 1024)
    (tmp_path / "1.tar").unlink()
    assert source.read([2, 3]) == [Skip("unreadable shard", "0.tar:002"), Skip("unreadable shard", "1.tar:000")]


@with_shared
@pytest.mark.parametrize(
    ("pattern", "count", "key", "captions", "label"),
    [
        ("emoji/train-{00000..00005}.tar", 3053, "train-00000.tar:noto_1fac4", ("pregnant person",), None),
        ("emoji/val-*.tar", 361, "val-00000.tar:noto_1f9dd_1f3fd_200d_2642", None, None),
        ("cifar10/train-*.tar", 20_000, "train-00000.tar:train_bird_2023", ("bird",), 2),
        ("cifar10/val-00000.tar", 2000, "val-00000.tar:test_deer_0281", ("deer",), 4),
    ],
)
def test_real_shards(pattern, count, key, captions, label, caplog):
    caplog.set_level(logging.WARNING)
    source = TarShards(str(SHARED / pattern))
    assert len(source) == count and not caplog.messages
    record = source.read([0])[0]
    assert (record.key, record.label) == (key, label) and record.captions == (captions or record.captions)
    assert not any(isinstance(record, Skip) for record in source.read(range(0, count, 7)))
