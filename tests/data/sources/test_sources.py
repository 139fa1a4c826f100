"""The source opened for each text in a config."""

import io
import pathlib
import tarfile

import pyarrow
import pytest
from array_record.python import array_record_module
from pyarrow import parquet
from tensorflow_datasets.proto import tf_example_pb2

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
