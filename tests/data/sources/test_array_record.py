"""ArrayRecord files of tf.train.Example, written by the array_record library."""

import concurrent.futures
import pathlib

import numpy as np
import pytest

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import array_record
from jaxclip.data.sources.array_record import ArrayRecords
from jaxclip.errors import UserError


def serialized(**features: bytes) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        example.features.feature[name].bytes_list.value.append(value)
    return example.SerializeToString()


def numbered(first: int, count: int) -> list[bytes]:
    """Examples with the captions 0, 1, ... and images that do not compress."""
    images = np.random.default_rng(first).bytes(1000 * count)
    return [serialized(image=images[1000 * n :][:1000], caption=b"%d" % (first + n)) for n in range(count)]


def write(path: pathlib.Path, examples: list[bytes], options: str = "group_size:1") -> pathlib.Path:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for data in examples:
        writer.write(data)
    writer.close()
    return path


def captions(source, ids=None) -> list[str]:
    return [record.captions[0] for record in source.read(range(len(source)) if ids is None else ids)]


@pytest.mark.parametrize("options", ["group_size:1", "group_size:3", "group_size:100", "group_size:2,uncompressed"])
def test_records_are_read_in_the_order_asked_for(tmp_path, options):
    for shard in range(3):
        write(tmp_path / f"s-{shard}.array_record", numbered(5 * shard, 5), options)
    source = ArrayRecords(str(tmp_path / "s-{0..2}.array_record"))
    ids = np.array([14, 0, 5, 5, 9, 4])
    assert captions(source, ids) == [str(i) for i in ids]
    assert [record.key for record in source.read(ids)] == [f"s-{i // 5}.array_record:{i % 5}" for i in ids]
    assert captions(source) == [str(n) for n in range(15)]


def test_groups_that_memory_could_not_hold_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.array_record", numbered(0, 64), "group_size:16")
    monkeypatch.setattr(array_record, "_LARGEST_GROUP", path.stat().st_size // 3)
    assert len(ArrayRecords(str(path))) == 64
    monkeypatch.setattr(array_record, "_LARGEST_GROUP", path.stat().st_size // 5)
    with pytest.raises(UserError, match="a.array_record has groups of 16 records, .* write it with group_size:1"):
        ArrayRecords(str(path))
    write(path, numbered(0, 64), "group_size:1")
    assert len(ArrayRecords(str(path))) == 64


def test_chunks_are_the_groups(tmp_path):
    write(tmp_path / "a.array_record", numbered(0, 7), "group_size:3")
    write(tmp_path / "b.array_record", [], "group_size:3")
    write(tmp_path / "c.array_record", numbered(7, 4), "group_size:1")
    write(tmp_path / "d.array_record", numbered(11, 6), "group_size:2")
    source = ArrayRecords(str(tmp_path / "*.array_record"))
    assert source.chunk_ends is not None
    assert source.chunk_ends.tolist() == [3, 6, 7, 11, 13, 15, 17]
    assert captions(source) == [str(n) for n in range(17)]
    assert ArrayRecords(str(tmp_path / "c.array_record")).chunk_ends is None


def test_records_that_cannot_be_used_are_skipped(tmp_path):
    good = serialized(image=b"!", caption=b"a cat")
    examples = [good, b"\xff" * 20, serialized(caption=b"a cat"), serialized(image=b"!", caption=b" ")]
    assert ArrayRecords(str(write(tmp_path / "x.array_record", examples))).read(range(4)) == [
        Record(b"!", ("a cat",), "x.array_record:0"),
        Skip("unreadable record", "x.array_record:1"),
        Skip("no image", "x.array_record:2"),
        Skip("no caption", "x.array_record:3"),
    ]


@pytest.mark.parametrize("options", ["group_size:1,uncompressed", "group_size:2,uncompressed"])
def test_a_flipped_bit_costs_its_group_alone(tmp_path, options):
    path = write(tmp_path / "x.array_record", numbered(0, 6), options)
    data = bytearray(path.read_bytes())
    data[data.find(numbered(0, 6)[4]) + 500] ^= 1
    path.write_bytes(data)
    source = ArrayRecords(str(path))
    size = 2 if "group_size:2" in options else 1
    for _ in range(2):  # a reader that met the damage is still good for the others
        records = source.read(range(6))
        assert [n for n in range(6) if isinstance(records[n], Skip)] == list(range(4, 4 + size))
        assert records[4] == Skip("unreadable record", "x.array_record:4")


def test_a_file_that_is_damaged_after_it_was_opened_is_skipped_not_raised(tmp_path):
    path = write(tmp_path / "x.array_record", numbered(0, 6))
    source = ArrayRecords(str(path))
    path.write_bytes(bytes(path.stat().st_size))
    assert {record.reason for record in source.read(range(6)) if isinstance(record, Skip)} == {"unreadable record"}
    path.unlink()
    assert ArrayRecords(str(write(path, numbered(0, 1)))).read([0]) != source.read([0])


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        pytest.param(None, "x.array_record", ["does not exist"], id="missing"),
        pytest.param(None, "*.array_record", ["matches no file"], id="glob-of-nothing"),
        pytest.param(b"", "x.array_record", ["cannot be read as an ArrayRecord file"], id="no-bytes"),
        pytest.param(b"text\n" * 40_000, "x.array_record", ["cannot be read as an ArrayRecord file"], id="text"),
        pytest.param(bytes(200_000), "x.array_record", ["cannot be read as an ArrayRecord file"], id="zeros"),
        pytest.param([], "x.array_record", ["contains no records"], id="no-records"),
        pytest.param([b"\xff" * 9], "x.array_record", ["no tf.train.Example"], id="no-example"),
        pytest.param([serialized(url=b"u")], "x.array_record", ["features url", "an image under"], id="no-image"),
    ],
)
def test_unusable_files_are_one_line_naming_the_culprit(tmp_path, content, name, said):
    path = tmp_path / "x.array_record"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    with pytest.raises(UserError) as raised:
        ArrayRecords(str(tmp_path / name))
    message = str(raised.value)
    assert str(tmp_path / name) in message and "\n" not in message
    for part in said:
        assert part in message


def test_a_cut_file_is_an_error_naming_it(tmp_path):
    path = write(tmp_path / "x.array_record", numbered(0, 300))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"x\.array_record cannot be read as an ArrayRecord file"):
        ArrayRecords(str(path))


def test_remote_files_are_refused_with_what_to_do():
    with pytest.raises(UserError, match="gs://bucket/x.array_record: .* copy them"):
        ArrayRecords("gs://bucket/x.array_record")


def test_threads_may_read_at_once(tmp_path):
    for shard in range(4):
        write(tmp_path / f"{shard}.array_record", numbered(25 * shard, 25), f"group_size:{1 + 3 * (shard % 2)}")
    source = ArrayRecords(str(tmp_path / "*.array_record"))
    ids = np.random.default_rng(0).integers(0, 100, size=(16, 50)).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for asked, records in zip(ids, pool.map(source.read, ids), strict=True):
            assert [int(record.captions[0]) for record in records] == asked
