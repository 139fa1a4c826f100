"""Parquet files as written by img2dataset and Hugging Face."""

import concurrent.futures
import json
import pathlib
import struct

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxclip.data.index import parquet as parquet_index
from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import parquet
from jaxclip.data.sources.parquet import Parquet
from jaxclip.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def write(path: pathlib.Path, columns, *, names: list[str] | None = None, rows: int = 100, **options) -> pathlib.Path:
    """A file of these columns, so many rows to a group; `names` are those of a Hugging Face ClassLabel `label`."""
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows, **options)
    return path


def images(*contents: bytes | None) -> pa.Array:
    """A column of images as Hugging Face data sets have it."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([None if content is None else {"bytes": content, "path": "x"} for content in contents], kind)


def numbered(first: int, count: int) -> dict:
    """Columns with the captions 0, 1, ... and images of different lengths."""
    numbers = range(first, first + count)
    return {"jpg": [b"%d" % n * (n + 1) for n in numbers], "caption": [str(n) for n in numbers]}


def read(path) -> list[Record | Skip]:
    source = Parquet(str(path))
    return source.read(range(len(source)))


def captions(source) -> list[str]:
    return [record.captions[0] for record in source.read(range(len(source)))]


def test_what_img2dataset_writes_is_read(tmp_path):
    columns = {
        "key": ["000000000", "000000001", "000000002"],
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "timed out", None],
        "url": ["http://a", "http://b", "http://c"],
        "width": pa.array([256, None, 256], pa.int32()),
        "exif": ["{}", None, "{}"],
        "sha256": ["x", None, "y"],
        "caption": [" a cat\n", "a dog", None],
        "jpg": [b"A", None, b"C"],
    }
    assert read(write(tmp_path / "00000.parquet", columns)) == [
        Record(b"A", ("a cat",), "00000.parquet:0"),
        Skip("no image", "00000.parquet:1"),
        Skip("no caption", "00000.parquet:2"),
    ]


def test_what_hugging_face_writes_is_read(tmp_path):
    columns = {"image": images(b"A", None, b"C", b"D", b""), "label": [1, 0, -1, 7, 0]}
    path = write(tmp_path / "x.parquet", columns, names=["cat", "dog"])
    assert Parquet(str(path)).class_names == ("cat", "dog")
    assert read(path) == [
        Record(b"A", ("dog",), "x.parquet:0", 1),
        Skip("no image", "x.parquet:1"),
        Skip("no caption", "x.parquet:2"),
        Skip("no caption", "x.parquet:3"),
        Skip("no image", "x.parquet:4"),
    ]


@pytest.mark.parametrize(
    ("columns", "found", "label"),
    [
        pytest.param({"image": [b"!"], "text": ["a cat"]}, ("a cat",), None, id="bytes-and-text"),
        pytest.param({"png": [b"!"], "captions": [["x", " ", None, "y "]]}, ("x", "y"), None, id="list"),
        pytest.param({"webp": [b"!"], "caption": [["x"]], "text": ["no"]}, ("x",), None, id="list-called-caption"),
        pytest.param({"img": images(b"!"), "caption": ["a"], "label": [3]}, ("a",), 3, id="structure-and-label"),
        pytest.param({"image": [b"!"], "label": [3]}, (), 3, id="label-alone"),
        pytest.param({"image": ["a.jpg"], "jpg": [b"!"], "caption": ["a"]}, ("a",), None, id="image-is-a-path"),
        pytest.param({"jpg": [b"!"], "caption": [3], "title": ["a"]}, ("a",), None, id="caption-is-a-number"),
        pytest.param(
            {
                "jpg": pa.array([b"!"], pa.large_binary()),
                "caption": pa.array([["a"]], pa.large_list(pa.large_string())),
            },
            ("a",),
            None,
            id="large-types",
        ),
        pytest.param(
            {
                "jpg": [b"!"],
                "caption": pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")),
            },
            ("caf\ufffd",),
            None,
            id="latin-1",
        ),
    ],
)
def test_columns_are_found_by_the_known_names(tmp_path, columns, found, label):
    assert read(write(tmp_path / "x.parquet", columns)) == [Record(b"!", found, "x.parquet:0", label)]


@pytest.mark.parametrize(
    "metadata",
    [b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"label": {"names": [1]}}}}', b"[" * 100_000],
)
def test_class_names_that_make_no_sense_are_none(tmp_path, metadata):
    table = pa.table({"image": [b"!"], "label": [3]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "x.parquet")
    assert Parquet(str(tmp_path / "x.parquet")).class_names == ()


def test_rows_come_by_file_and_group_and_in_the_order_asked_for(tmp_path):
    write(tmp_path / "0.parquet", numbered(0, 5), rows=2)
    write(tmp_path / "1.parquet", {"jpg": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    write(tmp_path / "2.parquet", numbered(5, 3))
    source = Parquet(str(tmp_path / "{0..2}.parquet"))
    assert [end for end in source.chunk_ends.tolist() if end] == [2, 4, 5, 5, 8] or source.chunk_ends.tolist() == [
        2,
        4,
        5,
        8,
    ]
    assert captions(source) == [str(n) for n in range(8)]
    ids = np.array([7, 0, 4, 4, 5])
    assert [record.image for record in source.read(ids)] == [b"%d" % n * (n + 1) for n in ids]
    assert [record.key for record in source.read([4, 6])] == ["0.parquet:4", "2.parquet:1"]


def test_cells_that_are_too_large_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_IMAGE", 100)
    monkeypatch.setattr(parquet, "LARGEST_CAPTION", 10)
    columns = {"jpg": [b"!" * 101, b"!", b"!", b"!"], "caption": [["a"], ["a" * 11], ["a" * 6] * 2, ["a" * 10]]}
    assert [getattr(one, "reason", "read") for one in read(write(tmp_path / "x.parquet", columns))] == [
        "image file too large",
        "caption too large",
        "caption too large",
        "read",
    ]


def test_a_row_group_is_decoded_once_while_it_is_wanted(tmp_path, monkeypatch):
    opened = []
    open_file = parquet.open_file
    monkeypatch.setattr(parquet, "open_file", lambda path: opened.append(path) or open_file(path))
    write(tmp_path / "x.parquet", numbered(0, 40), rows=10)
    source = Parquet(str(tmp_path / "x.parquet"))
    ids = np.random.default_rng(0).permutation(40).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for asked, record in zip(ids, pool.map(lambda index: source.read([index])[0], ids), strict=True):
            assert record.captions == (str(asked),)
    assert len(opened) == 4


def noise(megabytes: int) -> list[bytes]:
    """Images of a megabyte each that do not compress."""
    return [np.random.default_rng(n).bytes(1 << 20) for n in range(megabytes)]


def test_large_row_groups_are_told_in_one_line(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "x.parquet", {"jpg": noise(4), "caption": ["a"] * 4}, rows=3, use_dictionary=False)
    Parquet(str(path))
    assert not caplog.messages
    monkeypatch.setattr(parquet, "_CACHE", 3 << 19)
    Parquet(str(path))
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        f"{path}: 1 of 2 row groups are larger than 1 MiB"
    ]
    monkeypatch.setattr(parquet_index, "LARGEST_GROUP", 2 << 20)
    write(path, {"jpg": noise(5), "caption": ["a"] * 5})
    with pytest.raises(UserError, match=r"x\.parquet has a row group of .* write it anew with smaller ones"):
        Parquet(str(path))


def test_a_small_file_that_decodes_to_a_huge_one_is_not_decoded_to_the_end(tmp_path, monkeypatch):
    columns = {"jpg": [bytes(1 << 20)] * 400 + [b"!"], "caption": ["a"] * 401}
    path = write(tmp_path / "x.parquet", columns, rows=400)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 64 << 20)
    assert Parquet(str(path)).read([3, 400]) == [
        Skip("unreadable shard", "x.parquet:3"),
        Record(b"!", ("a",), "x.parquet:400"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, ["does not exist"], id="missing"),
        pytest.param(b"", ["cannot be read as a Parquet file"], id="no-bytes"),
        pytest.param(b"text\n" * 1000, ["cannot be read as a Parquet file", "magic bytes"], id="text"),
        pytest.param(
            b"PAR1" + b"\xff" * 100 + struct.pack("<I", 1 << 31) + b"PAR1", ["cannot be read"], id="lying-footer"
        ),
        pytest.param(b"PAR1" + b"\xff" * 100 + struct.pack("<I", 100) + b"PAR1", ["cannot be read"], id="no-footer"),
        pytest.param({"jpg": pa.array([], pa.binary()), "caption": []}, ["no column of captions"], id="null-captions"),
        pytest.param(
            {"jpg": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}, ["holds no rows"], id="no-rows"
        ),
        pytest.param({"url": ["http://a"], "caption": ["a"]}, ["urls", "img2dataset"], id="urls"),
        pytest.param({"picture_id": [3], "caption": ["a"]}, ["found picture_id, caption", "jpg"], id="no-image"),
        pytest.param({"jpg": [b"!"], "words": ["a"]}, ["found jpg, words", "title"], id="no-caption"),
    ],
)
def test_unusable_files_are_one_line_naming_the_culprit(tmp_path, content, said):
    path = tmp_path / "x.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    with pytest.raises(UserError) as raised:
        Parquet(str(path))
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    for part in said:
        assert part in message


def test_a_cut_file_among_others_is_an_error_naming_it(tmp_path):
    for shard in range(3):
        write(tmp_path / f"{shard}.parquet", numbered(3 * shard, 3))
    path = tmp_path / "1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"1\.parquet cannot be read as a Parquet file, it may be cut"):
        Parquet(str(tmp_path / "*.parquet"))


def test_files_with_other_columns_are_an_error_naming_one(tmp_path):
    write(tmp_path / "0.parquet", numbered(0, 3))
    write(tmp_path / "1.parquet", {"png": [b"!"], "text": ["a"]})
    with pytest.raises(UserError, match=r"1\.parquet has other columns .*0\.parquet \(png, text, not jpg, caption\)"):
        Parquet(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_row_group_is_skipped_not_raised(tmp_path, compression):
    images = [np.random.default_rng(n).bytes(500) for n in range(40)]
    columns = {"jpg": images, "caption": [str(n) for n in range(40)]}
    path = write(tmp_path / "x.parquet", columns, rows=10, compression=compression, write_page_checksum=False)
    whole = path.read_bytes()
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(whole)
    data[start : start + 8] = b"\xff" * 8  # the header of a page
    path.write_bytes(data)
    records = read(path)
    assert [n for n in range(40) if isinstance(records[n], Skip)] == list(range(10, 20))
    assert records[10] == Skip("unreadable shard", "x.parquet:10")
    random = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in random.integers(0, len(data), size=3):
            data[place] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            assert {type(record) for record in read(path)} <= {Record, Skip}
        except UserError as error:
            assert "x.parquet" in str(error)


def test_a_file_that_is_gone_after_it_was_opened_is_skipped_not_raised(tmp_path):
    path = write(tmp_path / "x.parquet", numbered(0, 4), rows=2)
    source = Parquet(str(path))
    path.write_bytes(path.read_bytes()[:100])
    assert source.read([3]) == [Skip("unreadable shard", "x.parquet:3")]
    path.unlink()
    assert source.read([0]) == [Skip("unreadable shard", "x.parquet:0")]


def test_ends_of_files_are_read_once_and_again_when_one_changes(tmp_path, cache, monkeypatch):
    opened = []
    facts = parquet_index._facts
    monkeypatch.setattr(parquet_index, "_facts", lambda file: opened.append(file.name) or facts(file))
    for shard in range(2):
        write(tmp_path / f"{shard}.parquet", numbered(3 * shard, 3), rows=2)
    pattern = str(tmp_path / "*.parquet")
    first = Parquet(pattern)
    again = Parquet(pattern)
    assert sorted(opened) == ["0.parquet", "1.parquet"]
    assert captions(first) == captions(again) == list("012345")
    assert first.chunk_ends.tolist() == again.chunk_ends.tolist() == [2, 3, 5, 6]
    write(tmp_path / "1.parquet", numbered(6, 2))
    assert captions(Parquet(pattern)) == list("01267")
    for kept in (cache / "parquet-index").iterdir():
        kept.write_bytes(kept.read_bytes()[:-5])
    assert captions(Parquet(pattern)) == list("01267")


def test_remote_files_are_read_like_local_ones(tmp_path):
    memory = fsspec.filesystem("memory")
    for shard in range(2):
        path = write(tmp_path / f"{shard}.parquet", numbered(3 * shard, 3), rows=2)
        memory.pipe(f"/pq/{shard}.parquet", path.read_bytes())
    remote, local = Parquet("memory://pq/*.parquet"), Parquet(str(tmp_path / "*.parquet"))
    assert remote.read(range(6)) == local.read(range(6))
    assert remote.chunk_ends.tolist() == [2, 3, 5, 6]
    memory.rm("/pq/1.parquet")
    assert remote.read([2])[0] == local.read([2])[0]
    assert Parquet("memory://pq/{0..0}.parquet").read([0]) == local.read([0])
