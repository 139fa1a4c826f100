"""Kept indices of tars, TFRecords and Parquet files that are damaged: every record stays the right one."""

import dataclasses
import pathlib
import shutil
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tar_files import numbered, write_tar

from jaxclip.data.index import checked, tar_build
from jaxclip.data.index import tfrecord as tfrecord_index
from jaxclip.data.sources.parquet import Parquet
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.sources.tfrecord import TfRecords
from jaxclip.errors import UserError

EVERY = 7  # bytes from one flipped bit to the next


def write_tfrecord(path: pathlib.Path, first: int, count: int) -> None:
    from tensorflow_datasets.proto import tf_example_pb2

    with path.open("wb") as file:
        for number in range(first, first + count):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(b"%d" % number * (number + 1))
            example.features.feature["caption"].bytes_list.value.append(b"%d" % number)
            data = example.SerializeToString()
            length = struct.pack("<Q", len(data))
            checksum = tfrecord_index.masked_crc32c(np.frombuffer(length, np.uint8)[None])[0]
            file.write(length + struct.pack("<I", checksum) + data + bytes(4))


def write_parquet(path: pathlib.Path, first: int, count: int) -> None:
    numbers = range(first, first + count)
    table = pa.table({"jpg": [b"%d" % n * (n + 1) for n in numbers], "caption": [str(n) for n in numbers]})
    pq.write_table(table, path, row_group_size=2)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of data files: how one with so many numbered records is written, and the source that reads them."""

    suffix: str
    write: Callable[[pathlib.Path, int, int], object]
    source: Callable[[str], TarShards | TfRecords | Parquet]

    def records(self, pattern: str) -> list:
        source = self.source(pattern)
        return source.read(range(len(source)))

    def make(self, folder: pathlib.Path, first: int) -> str:
        """Writes three files with the records `first` to `first` + 8; their pattern."""
        folder.mkdir()
        for number in range(3):
            self.write(folder / f"{number}.{self.suffix}", first + 3 * number, 3)
        return str(folder / f"*.{self.suffix}")


TAR = Kind("tar", lambda path, first, count: write_tar(path, numbered(first, count)), TarShards)
TFRECORD = Kind("tfrecord", write_tfrecord, TfRecords)
PARQUET = Kind("parquet", write_parquet, Parquet)
KINDS = [pytest.param(kind, id=kind.suffix) for kind in (TAR, TFRECORD, PARQUET)]


def kept(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def flipped(good: bytes) -> list[bytes]:
    """The same with one bit in every few bytes flipped, one at a time."""
    return [
        good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :] for place in range(0, len(good), EVERY)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_index_is_made_anew(tmp_path, cache, kind):
    pattern = kind.make(tmp_path / "data", 0)
    records = kind.records(pattern)
    assert [record.captions for record in records] == [(str(number),) for number in range(9)]
    (index,) = kept(cache)
    good = index.read_bytes()
    others = [b"", good[:-1], good[: len(good) // 2], good[:-100] + good[-99:], good + b"\0", good * 2]
    for bad in flipped(good) + others:
        index.write_bytes(bad)
        assert kind.records(pattern) == records and index.read_bytes() == good


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_of_another_set_is_not_taken(tmp_path, cache, kind):
    pattern, other = kind.make(tmp_path / "data", 0), kind.make(tmp_path / "other", 10)
    records = kind.records(pattern)
    (index,) = kept(cache)
    good = index.read_bytes()
    kind.records(other)
    (another,) = (path for path in kept(cache) if path != index)
    shutil.copy(another, index)
    assert kind.records(pattern) == records and index.read_bytes() == good


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_large_index_gives_right_records_or_a_line_and_is_then_made_anew(tmp_path, cache, kind, monkeypatch):
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", -1)
    monkeypatch.setattr(checked, "BLOCK", 16)
    pattern = kind.make(tmp_path / "data", 0)
    records = kind.records(pattern)
    (index,) = kept(cache)
    good, lines = index.read_bytes(), 0
    for bad in flipped(good):
        index.write_bytes(bad)
        try:
            assert kind.records(pattern) == records
        except UserError as error:
            assert str(error) == f"the index {index} is damaged: start again, it is made anew"
            assert not index.exists()
            lines += 1
            assert kind.records(pattern) == records and index.read_bytes() == good
    assert lines == 0 if kind is PARQUET else lines > 5  # the index of Parquet files is always read whole


@pytest.mark.parametrize(("kind", "module"), [(TAR, tar_build), (TFRECORD, tfrecord_index)], ids=["tar", "tfrecord"])
def test_damaged_parts_of_an_unfinished_index_are_made_anew(tmp_path, cache, kind, module, monkeypatch):
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", -1)  # parts are verified whole even so
    monkeypatch.setattr(checked, "BLOCK", 16)
    scans: list[int] = []
    scan, keep = module.scan, module.keep
    monkeypatch.setattr(module, "scan", lambda files, number: scans.append(number) or scan(files, number))
    # The parts are kept, the whole is not.
    monkeypatch.setattr(module, "keep", lambda place, fill: "parts" in place.parent.name and keep(place, fill))
    pattern = kind.make(tmp_path / "data", 0)
    records = kind.records(pattern)
    parts = kept(cache)
    good = [part.read_bytes() for part in parts]
    assert len(parts) == 3 and sorted(scans) == [0, 1, 2]
    scans.clear()
    assert kind.records(pattern) == records and not scans
    for bad in [*flipped(good[0]), b"", good[0][:-1], good[0][: len(good[0]) // 2], good[1]]:
        scans.clear()
        parts[0].write_bytes(bad)
        assert kind.records(pattern) == records and len(scans) == 1
        assert [part.read_bytes() for part in parts] == good
