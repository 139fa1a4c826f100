"""The source opened for each text in a config."""

import io
import pathlib
import tarfile

import fsspec
import pyarrow
import pytest
from array_record.python import array_record_module
from pyarrow import parquet
from tensorflow_datasets.proto import tf_example_pb2

from jaxclip.data.record import Record
from jaxclip.data.sources import open_source
from jaxclip.data.sources.array_record import ArrayRecords
from jaxclip.data.sources.folder import Folder
from jaxclip.data.sources.parquet import Parquet
from jaxclip.data.sources.shapes import Shapes
from jaxclip.data.sources.table import Table
from jaxclip.data.sources.tar import TarShards
from jaxclip.errors import UserError


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder with two shards of one record, and two tables of one row."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"x-{shard}.tar", "w") as file:
            for name, data in (("a.jpg", b"!"), ("a.txt", b"%d" % shard)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    (tmp_path / "t.csv").write_text("path,caption\na.jpg,a cat\n")
    (tmp_path / "t.tsv").write_text("path\tcaption\na.jpg\ta cat\n")
    for name in ("p-0.parquet", "p-1.parquet"):
        parquet.write_table(pyarrow.table({"jpg": [b"!"], "caption": ["a cat"]}), tmp_path / name)
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "a.jpg").write_bytes(b"!")
    example = tf_example_pb2.Example()
    example.features.feature["jpg"].bytes_list.value.append(b"!")
    example.features.feature["txt"].bytes_list.value.append(b"a cat")
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "r.array_record"), "group_size:1")
    writer.write(example.SerializeToString())
    writer.close()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "split"), [("shapes", "train"), ("shapes:validation", "validation"), ("shapes:unseen", "unseen")]
)
def test_shapes_need_no_folder(text, split):
    source = open_source(text, root="/nowhere")
    assert isinstance(source, Shapes) and source.split == split


@pytest.mark.parametrize(
    ("text", "kind", "length"),
    [
        ("x-0.tar", TarShards, 1),
        ("x-{0..1}.tar", TarShards, 2),
        ("x-*.tar", TarShards, 2),
        ("t.csv", Table, 1),
        ("t.tsv", Table, 1),
        ("p-*.parquet", Parquet, 2),
        ("p-{0..1}.parquet", Parquet, 2),
        ("classes", Folder, 1),
        ("r.array_record", ArrayRecords, 1),
    ],
)
def test_paths_start_from_the_root_or_the_working_directory(folder, monkeypatch, text, kind, length):
    monkeypatch.chdir("/")
    for source in (open_source(text, root=str(folder)), open_source(str(folder / text), root="/nowhere")):
        assert isinstance(source, kind) and len(source) == length
    monkeypatch.chdir(folder)
    assert len(open_source(text)) == length
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_source(f"~/{folder.name}/{text}")) == length
    assert len(open_source(text, root=f"~/{folder.name}")) == length


@pytest.fixture
def benchmark(folder) -> pathlib.Path:
    """A data set in CLIP_benchmark's form, of the two shards and a third that nshards.txt does not count."""
    (folder / "set" / "test").mkdir(parents=True)
    for number in range(2):
        (folder / f"x-{number}.tar").rename(folder / "set" / "test" / f"{number}.tar")
    (folder / "set" / "test" / "2.tar").write_bytes(b"")
    (folder / "set" / "test" / "nshards.txt").write_text("2\n")
    (folder / "set" / "classnames.txt").write_text("cat\nguinea pig\n")
    return folder / "set"


@pytest.mark.parametrize("text", ["set", "set/", "folder:set", "set/test"])
def test_a_folder_of_clip_benchmark_gives_its_shards_and_class_names(benchmark, text):
    source = open_source(text, root=str(benchmark.parent))
    assert isinstance(source, TarShards) and source.class_names == ("cat", "guinea pig")
    assert [record.captions for record in source.read([0, 1])] == [("0",), ("1",)]


@pytest.mark.parametrize("count", ["", "none", "0", "-1", "9" * 20])
def test_a_count_of_shards_that_is_none_is_one_line(benchmark, count):
    (benchmark / "test" / "nshards.txt").write_text(count)
    with pytest.raises(
        UserError, match=f"^{benchmark}/test/nshards.txt must hold the number of tars, and holds '{count}'"
    ):
        open_source(str(benchmark))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text\ncat/a.jpg,a cat\n"),
        ("metadata.jsonl", '{"file_name": "cat/a.jpg", "text": "a cat"}'),
    ],
)
def test_a_folder_with_hugging_faces_metadata_is_that_table(folder, name, content):
    (folder / "classes" / name).write_text(content)
    for text in ("classes", "classes/", "folder:classes"):
        source = open_source(text, root=str(folder))
        assert isinstance(source, Table)
        assert source.read([0]) == [Record(b"!", ("a cat",), f"{name}:cat/a.jpg")]


def test_a_remote_folder_has_the_same_forms(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/hf/metadata.csv": b"file_name,text\na.jpg,a cat\n", "/hf/a.jpg": b"!"})
    memory.pipe({"/cb/test/nshards.txt": b"1", "/cb/test/0.tar": (folder / "x-0.tar").read_bytes()})
    assert open_source("folder:memory://hf").read([0]) == [Record(b"!", ("a cat",), "metadata.csv:a.jpg")]
    assert open_source("folder:memory://cb").read([0]) == [Record(b"!", ("0",), "0.tar:a")]


@pytest.mark.parametrize("text", ["", "photos", "photos/", "shape", "x.tar.gz", "x.txt", "http://host/x", "x.tar "])
def test_another_text_is_an_error_that_says_the_forms(text):
    with pytest.raises(UserError) as raised:
        open_source(text)
    message = str(raised.value)
    assert repr(text) in message and "\n" not in message
    for form in ("shapes", "tfds:NAME", "{00000..00099}.tar", "*.tar", ".csv", ".tsv"):
        assert form in message


@pytest.mark.parametrize(
    "text", ["shapes:dreams", "tfds:", "none.tar", "none.csv", "none-*.tfrecord-*", "none.parquet"]
)
def test_what_is_not_there_is_an_error_naming_it(text, tmp_path):
    with pytest.raises(UserError) as raised:
        open_source(text, root=str(tmp_path))
    assert text.removeprefix("shapes:") in str(raised.value)
