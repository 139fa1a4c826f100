"""TFRecord files, written by TensorFlow and read without it."""

import concurrent.futures
import pathlib
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from paths import ROOT

from jaxclip.data.index import tfrecord as tfrecord_index
from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import tf_example, tfrecord
from jaxclip.data.sources.tfrecord import TfRecords
from jaxclip.data.storage import Files, list_files
from jaxclip.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def serialized(**features) -> bytes:
    """A tf.train.Example; bytes, texts, integers, and lists of them become its features ("__" stands for "/")."""
    import tensorflow as tf

    stored = {}
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        if isinstance(values[0], int):
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            texts = [value.encode() if isinstance(value, str) else value for value in values]
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))
        stored[name.replace("__", "/")] = feature
    return tf.train.Example(features=tf.train.Features(feature=stored)).SerializeToString()


def write(path: pathlib.Path, examples: list[bytes], compression: str = "") -> pathlib.Path:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for data in examples:
            writer.write(data)
    return path


def numbered(first: int, count: int) -> list[bytes]:
    """Examples with the captions 0, 1, ... and images of different lengths."""
    return [serialized(image=b"%d" % n * (300 * n + 1), caption=str(n)) for n in range(first, first + count)]


def captions(source) -> list[str]:
    return [record.captions[0] for record in source.read(range(len(source)))]


@pytest.mark.parametrize(
    ("features", "found", "label"),
    [
        pytest.param({"image": b"!", "caption": " a cat\n"}, ("a cat",), None, id="plain"),
        pytest.param({"jpg": b"!", "txt": "a cat", "cls": 3}, ("a cat",), 3, id="webdataset"),
        pytest.param({"image_bytes": b"!", "text": "a cat"}, ("a cat",), None, id="image-bytes"),
        pytest.param({"image": b"!", "captions": ["x", " ", "y "]}, ("x", "y"), None, id="several"),
        pytest.param({"image": b"!", "captions__text": ["x", "y"], "title": "no"}, ("x", "y"), None, id="coco"),
        pytest.param({"image__encoded": b"!", "image__caption": "a cat"}, ("a cat",), None, id="encoded"),
        pytest.param(
            {"image__encoded": b"!", "image__class__label": 7, "image__class__text": "cat"}, ("cat",), 7, id="class"
        ),
        pytest.param({"image": b"!", "label": 0}, (), 0, id="label-only"),
        pytest.param({"image": b"!", "label": -1, "caption": "a cat"}, ("a cat",), None, id="label-not-told"),
        pytest.param({"image": b"!", "label": 2**62, "caption": "a cat"}, ("a cat",), None, id="label-huge"),
        pytest.param({"image": b"!", "caption": b"caf\xe9"}, ("caf\ufffd",), None, id="latin-1"),
        pytest.param({"image": b"!", "caption": 3, "text": "a cat"}, ("a cat",), None, id="caption-is-a-number"),
    ],
)
def test_features_are_found_by_the_known_names(tmp_path, features, found, label):
    path = write(tmp_path / "x.tfrecord", [serialized(**features)])
    assert TfRecords(str(path)).read([0]) == [Record(b"!", found, "x.tfrecord:0", label)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "unreadable record", id="empty"),
        pytest.param(b"\xff" * 50, "unreadable record", id="no-example"),
        pytest.param(lambda: serialized(caption="a cat"), "no image", id="no-image"),
        pytest.param(lambda: serialized(image=b"", caption="a cat"), "no image", id="empty-image"),
        pytest.param(lambda: serialized(image="!", caption=" "), "no caption", id="blank-caption"),
        pytest.param(lambda: serialized(image=b"!" * 300, caption="a"), "image file too large", id="image"),
        pytest.param(lambda: serialized(image=b"!", caption="a" * 60), "caption too large", id="caption"),
        pytest.param(lambda: serialized(image=b"!" * 500, caption="a"), "image file too large", id="record"),
    ],
)
def test_a_record_that_cannot_be_used_is_skipped(tmp_path, monkeypatch, data, reason):
    monkeypatch.setattr(tf_example, "LARGEST_IMAGE", 200)
    monkeypatch.setattr(tf_example, "LARGEST_CAPTION", 50)
    monkeypatch.setattr(tfrecord, "LARGEST_EXAMPLE", 400)
    good = serialized(image=b"!", caption="a cat")
    path = write(tmp_path / "x.tfrecord", [good, data if isinstance(data, bytes) else data(), good])
    after = Record(b"!", ("a cat",), "x.tfrecord:2")
    assert TfRecords(str(path)).read([2, 1]) == [after, Skip(reason, "x.tfrecord:1")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s.tfrecord-*", range(9)),
        ("s.tfrecord-{00001..00002}-of-00003", range(3, 9)),
        ("s.tfrecord-00001-of-00003", range(3, 6)),
    ],
)
def test_files_come_in_order_and_records_in_the_order_asked_for(tmp_path, pattern, expected):
    for shard in range(3):
        write(tmp_path / f"s.tfrecord-{shard:05d}-of-00003", numbered(3 * shard, 3))
    write(tmp_path / "other.tfrecord", numbered(90, 1))
    source = TfRecords(str(tmp_path / pattern))
    assert captions(source) == [str(n) for n in expected]
    backwards = np.arange(len(source))[::-1]
    assert [record.captions[0] for record in source.read(backwards)] == [str(n) for n in reversed(expected)]
    assert source.read([1])[0].key == f"s.tfrecord-{expected[0] // 3:05d}-of-00003:1"
    assert source.chunk_ends is None


def test_checksums_are_those_of_the_standard():
    # RFC 3720, B.4: 32 bytes of zeros, of ones, and 0 to 31.
    rows = np.stack([np.zeros(32), np.full(32, 255), np.arange(32)]).astype(np.uint8)
    crc = np.array([0x8A9136AA, 0x62A8AB43, 0x46DD794E], np.uint32)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    np.testing.assert_array_equal(tfrecord_index.masked_crc32c(rows), masked)


# Three examples of these images' sizes: the ends of the records are in a page, and far apart.
def whole(tmp_path, sizes=(10, 9000, 20)) -> tuple[bytes, list[int]]:
    """The content of a file of three records, and the end of each."""
    path = write(tmp_path / "whole.tfrecord", [serialized(image=b"!" * size, caption="a") for size in sizes])
    ends = tfrecord_index.scan(Files(list_files(str(path))), 0)
    assert ends[0] == -1 and ends[-1] == path.stat().st_size
    return path.read_bytes(), ends[1:].tolist()


@pytest.mark.parametrize(("record", "offset"), [(1, 1), (1, 11), (1, 12), (1, 2000), (2, 5), (2, -1)])
def test_a_cut_file_gives_its_whole_records_and_is_reported(tmp_path, caplog, record, offset):
    content, ends = whole(tmp_path)
    path = tmp_path / "cut.tfrecord"
    path.write_bytes(content[: (ends[record - 1] if offset > 0 else ends[record]) + offset])
    for _ in range(2):  # the second time from the kept index
        caplog.clear()
        source = TfRecords(str(path))
        assert captions(source) == ["a"] * record
        assert caplog.messages == [f"{path} is cut short: only the {record} complete records before that are used"]


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"\0" * 12, id="zeros"),
        pytest.param((1 << 63).to_bytes(8, "little") + b"\0" * 4, id="length-2**63"),
        pytest.param(b"\xff" * 12, id="ones"),
        pytest.param((20).to_bytes(8, "little") + b"\1\2\3\4", id="plausible-length"),
    ],
)
def test_a_damaged_header_is_reported_and_ends_the_file(tmp_path, caplog, header):
    content, ends = whole(tmp_path)
    path = tmp_path / "damaged.tfrecord"
    path.write_bytes(content[: ends[0]] + header + content[ends[0] + 12 :])
    assert captions(TfRecords(str(path))) == ["a"]
    assert caplog.messages == [
        f"{path} has a damaged header at byte {ends[0]}: only the 1 complete records before that are used"
    ]


def test_a_long_run_of_zeros_is_not_taken_for_empty_records(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord_index, "_CHECKED_AT_ONCE", 2)
    content, ends = whole(tmp_path)
    path = tmp_path / "zeros.tfrecord"
    path.write_bytes(content + bytes(10_000))
    reads = []
    files = Files(list_files(str(path)))
    read = files.read_once
    monkeypatch.setattr(files, "read_once", lambda *place: reads.append(place) or read(*place))
    assert tfrecord_index.scan(files, 0).tolist() == [ends[-1], *ends]
    assert max(start for _, start, _ in reads) < ends[-1] + 4096  # it stopped soon


def test_a_flipped_bit_in_the_data_is_one_record_at_most(tmp_path):
    content, ends = whole(tmp_path)
    path = tmp_path / "flipped.tfrecord"
    for place in np.random.default_rng(0).integers(ends[0] + 12, ends[1] - 4, size=30):
        data = bytearray(content)
        data[place] ^= 255
        path.write_bytes(data)
        records = TfRecords(str(path)).read([0, 1, 2])
        assert [records[0].captions, records[2].captions] == [("a",), ("a",)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, ["x.tfrecord", "does not exist"], id="missing"),
        pytest.param(b"", ["contains no records"], id="no-bytes"),
        pytest.param(b"short", ["is not a TFRecord file"], id="short"),
        pytest.param(b"not a TFRecord\n" * 1000, ["is not a TFRecord file"], id="text"),
        pytest.param(bytes(100_000), ["is not a TFRecord file"], id="zeros"),
        pytest.param(b"\xff" * 100_000, ["is not a TFRecord file"], id="ones"),
        pytest.param("GZIP", ["compressed", "without compression"], id="gzip"),
        pytest.param("ZLIB", ["compressed", "without compression"], id="zlib"),
        pytest.param([b"\xff" * 30], ["no tf.train.Example"], id="no-example"),
        pytest.param(lambda: [serialized(width=3, caption="a")], ["caption, width", "an image under"], id="no-image"),
        pytest.param(lambda: [serialized(image="!", url="a")], ["image, url", "captions under"], id="no-caption"),
    ],
)
def test_unusable_files_are_one_line_naming_the_culprit(tmp_path, content, said):
    path = tmp_path / "x.tfrecord"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        write(path, numbered(0, 5), content)
    elif content is not None:
        write(path, content if isinstance(content, list) else content())
    with pytest.raises(UserError) as raised:
        TfRecords(str(path))
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    for part in said:
        assert part in message


def counted_scans(monkeypatch) -> list[str]:
    scans: list[str] = []
    scan = tfrecord_index.scan
    monkeypatch.setattr(tfrecord_index, "scan", lambda files, n: scans.append(files[n].name) or scan(files, n))
    return scans


def test_files_are_indexed_once_and_again_when_one_changes(tmp_path, cache, monkeypatch):
    scans = counted_scans(monkeypatch)
    for shard in range(2):
        write(tmp_path / f"{shard}.tfrecord", numbered(3 * shard, 3))
    pattern = str(tmp_path / "*.tfrecord")
    assert captions(TfRecords(pattern)) == captions(TfRecords(pattern)) == list("012345")
    assert sorted(scans) == ["0.tfrecord", "1.tfrecord"]
    assert [path.suffix for path in (cache / "tfrecord-index").iterdir()] == [".index"]
    write(tmp_path / "1.tfrecord", numbered(5, 4))
    assert captions(TfRecords(pattern)) == list("0125678")


def test_an_interrupted_index_goes_on_where_it_was(tmp_path, monkeypatch):
    for shard in range(2):
        write(tmp_path / f"{shard}.tfrecord", numbered(3 * shard, 3))
    pattern = str(tmp_path / "*.tfrecord")
    scans = counted_scans(monkeypatch)
    read = Files.read_once

    def failing(files, number, start, size):
        if number == 1:
            raise OSError("no such luck")
        return read(files, number, start, size)

    monkeypatch.setattr(Files, "read_once", failing)
    with pytest.raises(UserError, match=r"1\.tfrecord cannot be read: no such luck"):
        TfRecords(pattern)
    monkeypatch.setattr(Files, "read_once", read)
    assert captions(TfRecords(pattern)) == list("012345")
    assert sorted(scans) == ["0.tfrecord", "1.tfrecord", "1.tfrecord"]


def test_an_index_that_another_process_finishes_first_is_used(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "x.tfrecord", numbered(0, 3))
    scan, folder = tfrecord_index.scan, cache / "tfrecord-index"
    others = []

    def overtaken(files, number):
        monkeypatch.setattr(tfrecord_index, "scan", scan)
        assert captions(TfRecords(str(path))) == list("012")
        others.extend((kept.name, kept.stat().st_ino) for kept in folder.iterdir())
        return scan(files, number)

    monkeypatch.setattr(tfrecord_index, "scan", overtaken)
    assert captions(TfRecords(str(path))) == list("012")
    assert [(kept.name, kept.stat().st_ino) for kept in folder.iterdir()] == others and len(others) == 1


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-8], lambda data: b"x" * len(data), lambda data: data + b"\1" * 8]
)
def test_a_broken_index_is_made_anew(tmp_path, cache, damage):
    path = write(tmp_path / "x.tfrecord", numbered(0, 3))
    TfRecords(str(path))
    kept = next((cache / "tfrecord-index").iterdir())
    kept.write_bytes(damage(kept.read_bytes()))
    assert captions(TfRecords(str(path))) == list("012")


def test_without_a_place_for_the_index_it_is_made_each_time(tmp_path, cache):
    cache.write_bytes(b"a file where the folder would be")
    path = write(tmp_path / "x.tfrecord", numbered(0, 3))
    assert captions(TfRecords(str(path))) == captions(TfRecords(str(path))) == list("012")


def test_a_file_that_is_cut_after_it_was_opened_is_skipped_not_raised(tmp_path):
    path = write(tmp_path / "x.tfrecord", numbered(0, 3))
    source = TfRecords(str(path))
    with path.open("r+b") as file:
        file.truncate(300)
    assert source.read([2]) == [Skip("unreadable shard", "x.tfrecord:2")]


def test_remote_files_are_read_like_local_ones(tmp_path, monkeypatch):
    sizes = np.random.default_rng(0).integers(1, 3000, size=40).tolist()
    path = write(tmp_path / "x.tfrecord", [serialized(image=b"!" * n, caption=str(n)) for n in sizes])
    local = TfRecords(str(path))
    monkeypatch.setattr(tfrecord, "_CHUNK", 8192)
    memory = fsspec.filesystem("memory")
    memory.pipe({"/tf/0.tfrecord": path.read_bytes(), "/tf/1.tfrecord": b"", "/tf/2.tfrecord": path.read_bytes()})
    remote = TfRecords("memory://tf/{0..2}.tfrecord")
    expected = [(record.image, record.captions) for record in local.read(range(40))]
    assert [(record.image, record.captions) for record in remote.read(range(80))] == expected * 2
    starts = [remote._place(index)[2] - tfrecord_index.HEADER for index in range(40)]
    ends = [index + 1 for index in range(40) if index == 39 or starts[index] // 8192 != starts[index + 1] // 8192]
    assert len(ends) > 3
    assert remote.chunk_ends is not None and remote.chunk_ends.tolist() == ends + [40 + end for end in ends]


def test_threads_may_read_at_once(tmp_path):
    for shard in range(4):
        write(tmp_path / f"{shard}.tfrecord", numbered(5 * shard, 5))
    source = TfRecords(str(tmp_path / "*.tfrecord"))
    ids = np.random.default_rng(0).integers(0, 20, size=(16, 50)).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for asked, records in zip(ids, pool.map(source.read, ids), strict=True):
            assert [int(record.captions[0]) for record in records] == asked


def test_reading_does_not_import_tensorflow(tmp_path):
    path = write(tmp_path / "x.tfrecord", numbered(0, 1))
    code = (
        f"import sys; from jaxclip.data.sources.tfrecord import TfRecords; TfRecords({str(path)!r}).read([0]); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_little_is_fetched_of_remote_records_that_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord_index, "REMOTE_BLOCK", 10_000)
    content, ends = whole(tmp_path, sizes=(50_000,) * 8)
    fsspec.filesystem("memory").pipe("/tf/long.tfrecord", content)
    files = Files(list_files("memory://tf/long.tfrecord"))
    fetched = []
    read = files.read_once
    monkeypatch.setattr(files, "read_once", lambda *place: fetched.append(place[2]) or read(*place))
    assert tfrecord_index.scan(files, 0).tolist() == [-1, *ends]
    assert sum(fetched) < len(content) // 8
