"""Tar shards: the grouping of members into records, and messages about unusable shards."""

import concurrent.futures
import logging
import os
import pathlib
import tarfile

import numpy as np
import pytest
from tar_files import header, numbered, pax, special, write_tar

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.storage import files as storage
from jaxclip.errors import UserError

SHARED = next(
    (up / "shared/data" for up in pathlib.Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None
)
with_shared = pytest.mark.skipif(SHARED is None, reason="no shared/data beside the repository")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """Where indices are kept in these tests; never the person's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXCLIP_CACHE", str(folder))
    return folder


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
def test_an_image_without_caption_and_label_is_skipped(tmp_path, caption):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"!"), ("a.txt", b"a"), ("b.jpg", b"!"), *caption])
    assert TarShards(str(path)).read([1, 0]) == [Skip("no caption", "x.tar:b"), Record(b"!", ("a",), "x.tar:a")]


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


@pytest.mark.parametrize("apart", [False, True])
def test_members_with_a_name_of_a_later_one_are_counted_as_lost(tmp_path, caplog, apart):
    first = [("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"2"), ("b.txt", b"two")]
    second = [("a.png", b"3"), ("a.txt", b"three"), ("b.json", b"{}")]
    members = first + second if apart else [*first[:2], *second[:2], *first[2:], *second[2:]]
    path = write_tar(tmp_path / "x.tar", members)
    records = TarShards(str(path)).read([0, 1])
    assert [(record.image, record.captions) for record in records] == [(b"3", ("three",)), (b"2", ("two",))]
    assert caplog.messages == [
        f"{path}: 2 members are lost, because a later one has the same name up to its first dot, such as a; give every "
        "record a name of its own"
    ]


def test_images_with_dots_in_their_names_are_counted_as_lost_if_their_record_has_no_other(tmp_path, caplog):
    members = [("a.jpg", b"!"), ("a.seg.png", b"?"), ("a.txt", b"a")]
    for number in range(4):
        members += [(f"St. Louis {number}.jpg", b"!"), (f"St. Louis {number}.txt", b"a city")]
    path = write_tar(tmp_path / "x.tar", members)
    assert len(TarShards(str(path))) == 1
    assert caplog.messages == [
        f"{path}: 1 records without an image are left out",
        f"{path}: 4 images are lost, because a record's name ends at the first dot and theirs have another, such as "
        "St. Louis 0.jpg; rename them",
    ]


def test_records_without_an_image_are_left_out_and_counted(tmp_path, caplog):
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", b"!"), ("a.txt", b"a"), ("b.txt", b"b"), ("c.json", b"{}"), (".jpg", b"?")]
    )
    assert only(path).key == "x.tar:a"
    assert caplog.messages == [f"{path}: 2 records without an image are left out"]


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
    monkeypatch.setattr(storage, "_OPEN_FILES", 2)
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


def test_an_empty_shard_among_others_is_reported(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", numbered(0, 1))
    empty = write_tar(tmp_path / "b.tar", [])
    assert len(TarShards(str(tmp_path / "*.tar"))) == 1
    assert caplog.messages == [f"{empty} is an empty tar"]


@pytest.mark.parametrize(
    ("content", "pattern", "said"),
    [
        pytest.param(None, "none.tar", ["none.tar", "does not exist"], id="missing"),
        pytest.param(None, "none-*.tar", ["none-*.tar", "matches no file"], id="glob-of-nothing"),
        pytest.param(
            [("a.jpg", b"!"), ("a.txt", b"a")], "x-{0..1}.tar", ["x-1.tar", "does not exist"], id="range-too-far"
        ),
        pytest.param([("a.jpg", b"!"), ("a.txt", b"a")], "x-{0..99999999999}.tar", ["x-1.tar"], id="huge-range"),
        pytest.param(None, "x-{5..3}.tar", ["x-{5..3}.tar", "matches no file"], id="range-backwards"),
        pytest.param(b"", "x-0.tar", ["x-0.tar", "empty tar"], id="no-bytes"),
        pytest.param([], "x-0.tar", ["x-0.tar", "empty tar"], id="no-members"),
        pytest.param(b"not a tar at all\n" * 100, "x-0.tar", ["x-0.tar", "is not a tar"], id="text"),
        pytest.param(b"short", "x-0.tar", ["x-0.tar", "is not a tar"], id="short-text"),
        pytest.param(b"\x1f\x8b" + bytes(range(256)) * 8, "x-0.tar", ["x-0.tar", "uncompressed"], id="gzip"),
        pytest.param(
            [("a.txt", b"a"), ("a.gif", b"!")], "x-0.tar", ["image", "found .gif, .txt", ".webp"], id="no-image"
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
    for pattern, said in (("x.tar", "is not a file"), ("*.tar", "matches no file")):
        with pytest.raises(UserError, match=said):
            TarShards(str(tmp_path / pattern))


def test_a_pipe_named_like_a_tar_is_passed_over_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", numbered(0, 1))
    assert only(tmp_path / "*.tar").key == "b.tar:000"
    with pytest.raises(UserError, match="is not a file"):
        TarShards(str(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((256 << 20, 16 << 20, 2), Record),
        (((256 << 20) + 1, 1, 2), Skip("image file too large", "x.tar:a")),
        ((1, (16 << 20) + 1, 2), Skip("caption too large", "x.tar:a")),
        ((1, 0, 1 << 30), Skip("no caption", "x.tar:a")),
    ],
)
def test_members_too_large_to_be_true_are_not_read(tmp_path, sizes, expected):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:  # with holes: the data take no room on disk
        for name, size in zip((b"a.jpg", b"a.txt", b"a.cls"), sizes, strict=True):
            file.write(header(name, size))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.write(header(b"b.jpg") + header(b"b.txt") + bytes(1024))
    record = TarShards(str(path)).read([0])[0]
    assert record == expected or (expected is Record and isinstance(record, Record))


def test_names_in_messages_cannot_affect_a_terminal(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(pax(path=b"\x1b[2J\nred\x00\xff.jpg") + header(b"a.jpg", 0) + bytes(1024))
    with pytest.raises(UserError) as raised:
        TarShards(str(path))
    assert str(raised.value).isprintable()
    with path.open("ab") as file:
        file.truncate(1536)
        file.seek(1536)
        file.write(pax(path=b"\x1b[2J\nred\x00\xff.txt") + header(b"a.txt", 1) + b"x".ljust(512) + bytes(1024))
    assert only(path).key == "x.tar:\ufffd[2J\ufffdred\ufffd\ufffd"


def test_of_many_damaged_shards_the_first_are_named_and_the_rest_counted(tmp_path, caplog):
    for shard in range(30):
        write_tar(tmp_path / f"{shard:02d}.tar", numbered(0, 1) if shard == 5 else [])
    only(tmp_path / "*.tar")
    assert len(caplog.messages) == 21 and caplog.messages[-1].endswith("9 more shards are empty, truncated or damaged")


def test_a_shard_that_shrinks_or_goes_is_skipped_not_raised(tmp_path, monkeypatch):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", numbered(0, 3))
    TarShards(str(tmp_path / "*.tar"))  # makes the index, for which the files are opened
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
