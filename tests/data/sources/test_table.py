"""Tables of image paths and captions."""

import os
import pathlib

import fsspec
import pytest

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import single_file, table_rows
from jaxclip.data.sources.table import Table
from jaxclip.errors import UserError


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder with the images a.jpg and sub/b c.png."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "sub" / "b c.png").write_bytes(b"B")
    return tmp_path


def read(path: pathlib.Path, content: str | bytes) -> list[Record | Skip]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = Table(str(path))
    return table.read(range(len(table)))


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        pytest.param("t.csv", "path,caption\na.jpg,a cat\n", ["a cat"], id="plain"),
        pytest.param("t.csv", "caption,size,path\na cat,3,a.jpg\n", ["a cat"], id="any-order"),
        pytest.param("t.csv", " Image , TITLE \na.jpg,a cat", ["a cat"], id="capitals-and-spaces"),
        pytest.param("t.csv", "filepath,title\na.jpg,a cat", ["a cat"], id="filepath-title"),
        pytest.param("t.csv", "file,text\na.jpg,a cat", ["a cat"], id="file-text"),
        pytest.param("t.csv", "filename,caption\na.jpg,a cat", ["a cat"], id="filename"),
        pytest.param("t.csv", "image,path,text,caption\nno,a.jpg,no,a cat", ["a cat"], id="first-of-several-names"),
        pytest.param("t.tsv", "path\tcaption\na.jpg\ta cat, asleep\n", ["a cat, asleep"], id="tabs"),
        pytest.param("t.TSV", "path\tcaption\na.jpg\ta cat\n", ["a cat"], id="tabs-in-capitals"),
        pytest.param("t.csv", 'path,caption\na.jpg,"a ""cat"", a\ndog"\n', ['a "cat", a\ndog'], id="quoted-newline"),
        pytest.param("t.csv", "path,caption\r\na.jpg,a cat\r\n", ["a cat"], id="crlf"),
        pytest.param("t.csv", 'path,caption\r\na.jpg,"a\r\nb"\r\n', ["a\r\nb"], id="quoted-crlf"),
        pytest.param("t.csv", "\ufeffpath,caption\na.jpg,a cat\n", ["a cat"], id="byte-order-mark"),
        pytest.param("t.csv", b"path,caption\na.jpg,caf\xe9\n", ["caf\ufffd"], id="latin-1"),
        pytest.param("t.csv", "path,caption\na.jpg,\u732b\n", ["\u732b"], id="utf-8"),
        pytest.param("t.csv", "path,caption\na.jpg,a cat\n".encode("utf-16"), ["a cat"], id="utf-16"),
        pytest.param("t.csv", "filepath\ttitle\na.jpg\ta cat, asleep\n", ["a cat, asleep"], id="open_clip"),
        pytest.param("t.csv", "path;caption\na.jpg;a cat, asleep\n", ["a cat, asleep"], id="semicolons"),
        pytest.param("t.csv", "image_name| comment_number| comment\na.jpg| 0| a cat\n", ["a cat"], id="flickr30k"),
        pytest.param("metadata.csv", 'file_name,text\na.jpg,"a cat, asleep"\n', ["a cat, asleep"], id="hugging-face"),
        pytest.param("t.csv", "path,caption,more;less\na.jpg,a;cat,\n", ["a;cat"], id="semicolon-in-a-caption"),
        pytest.param("metadata.jsonl", '{"file_name": "a.jpg", "text": "a cat"}\n\n', ["a cat"], id="json-lines"),
        pytest.param("t.csv", "path,caption\n\na.jpg,one\n\na.jpg,two\n\n", ["one", "two"], id="empty-lines"),
    ],
)
def test_rows_become_records(folder, name, content, captions):
    assert read(folder / name, content) == [Record(b"A", (caption,), f"{name}:a.jpg") for caption in captions]


def test_an_object_of_json_lines_may_have_several_captions_and_a_label(folder):
    lines = (
        '{"image": "a.jpg", "captions": ["a cat", " a pet ", 3, ""], "label": 2}\n{"image": "a.jpg", "label": "7"}\n'
    )
    assert read(folder / "t.jsonl", lines) == [
        Record(b"A", ("a cat", "a pet"), "t.jsonl:a.jpg", 2),
        Record(b"A", (), "t.jsonl:a.jpg", 7),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", Skip("not a JSON object", "t.jsonl:line 2")),
        ('["a.jpg", "a cat"]', Skip("not a JSON object", "t.jsonl:line 2")),
        ("[" * 100_000, Skip("not a JSON object", "t.jsonl:line 2")),
        ('{"text": "a cat"}', Skip("no image path", "t.jsonl:line 2")),
        ('{"file_name": 3, "text": "a cat"}', Skip("no image path", "t.jsonl:line 2")),
        ('{"file_name": "a.jpg", "text": null}', Skip("no caption", "t.jsonl:a.jpg")),
        ('{"file_name": "a.jpg", "text": "x\\ud800"}', Record(b"A", ("x?",), "t.jsonl:a.jpg")),
        ('{"file_name": "a.jpg", "text": "' + "y" * 2000 + '"}', Skip("caption too large", "t.jsonl:line 2")),
    ],
)
def test_a_line_that_is_no_record_is_skipped(folder, monkeypatch, line, expected):
    if "yyy" in line:
        monkeypatch.setattr(table_rows, "_LARGEST_LINE", 1000)
    good = '{"file_name": "a.jpg", "text": "a cat"}'
    first, found, last = read(folder / "t.jsonl", f"{good}\n{line}\n{good}")
    assert found == expected and first == last == Record(b"A", ("a cat",), "t.jsonl:a.jpg")


def test_a_table_of_labels_needs_no_captions(folder):
    assert read(folder / "t.csv", "path,label\na.jpg,3\n") == [Record(b"A", (), "t.csv:a.jpg", 3)]


def test_captions_that_are_not_utf_8_are_counted(folder, caplog):
    read(folder / "t.csv", b"path,caption\na.jpg,caf\xe9\na.jpg,a cat\na.jpg,\xff\n")
    message = f"{folder / 't.csv'}: 2 captions have bytes that are not UTF-8, which became U+FFFD"
    assert caplog.messages == [message]


def test_paths_are_relative_to_the_table_or_absolute(folder, monkeypatch):
    monkeypatch.chdir("/")
    content = f"path,caption\nsub/b c.png,one\n{folder / 'a.jpg'},two\nsub/../a.jpg,three\n"
    assert [record.image for record in read(folder / "t.csv", content)] == [b"B", b"A", b"A"]


def test_labels_are_read_where_there_are_some(folder):
    records = read(folder / "t.csv", "path,caption,label\na.jpg,a cat,3\na.jpg,,5\na.jpg,a dog,\na.jpg,short\n")
    assert [(record.captions, record.label) for record in records] == [
        (("a cat",), 3),
        ((), 5),
        (("a dog",), None),
        (("short",), None),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("gone.jpg,a cat", "missing file"),
        ("gone/a.jpg,a cat", "missing file"),
        ("sub,a cat", "unreadable file"),
        (",a cat", "unreadable file"),
        ("x" * 5000 + ",a cat", "unreadable file"),
        ("a\0.jpg,a cat", "unreadable file"),
        ("a.jpg,", "no caption"),
        ("a.jpg, ", "no caption"),
        ("a.jpg", "no caption"),
        ("a.jpg,a cat, asleep", "too many fields"),
    ],
)
def test_a_row_that_gives_no_record_is_skipped(folder, row, reason):
    records = read(folder / "t.csv", f"path,caption\n{row}\na.jpg,after\n")
    assert records == [Skip(reason, f"t.csv:{row.split(',')[0][:4096]}"), Record(b"A", ("after",), "t.csv:a.jpg")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, ["cannot be read", "No such file"], id="missing"),
        pytest.param("", ["no column path", "found none"], id="empty"),
        pytest.param("path,caption\n", ["no rows"], id="header-only"),
        pytest.param(
            "url,caption\nx,y\n", ["no column path or filepath", "found url, caption", "img2dataset"], id="no-path"
        ),
        pytest.param("path,words\nx,y\n", ["no column caption or title or text", "found path, words"], id="no-caption"),
        pytest.param(
            "path,words\tlength|x\nx,y\n", ["no column caption", "found path, words\ufffdlength|x"], id="hostile-header"
        ),
        pytest.param("path,caption,label\na.jpg,x,1\na.jpg,x,cat\n", ["line 3", "'cat'"], id="label-no-number"),
        pytest.param(
            "path,caption\na.jpg,x\nHTTPS://x.org/a.jpg,y\n", ["line 3", "HTTPS://x.org/a.jpg", "img2dataset"], id="url"
        ),
        pytest.param(
            'path,caption\na.jpg,x\na.jpg,"y\n' + "a.jpg,x\n" * 2000, ["line 3", "line 2003", "quote"], id="quote-open"
        ),
    ],
)
def test_an_unusable_table_is_one_line_naming_the_culprit(folder, content, said):
    path = folder / "t.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as raised:
        Table(str(path))
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    for part in said:
        assert part in message


def test_a_large_cell_is_read_and_a_larger_one_skipped(folder, monkeypatch):
    long = "y" * 200_000  # more than the csv module takes by default
    assert read(folder / "t.csv", f"path,caption\na.jpg,{long}\n") == [Record(b"A", (long,), "t.csv:a.jpg")]
    monkeypatch.setattr(table_rows, "LARGEST_CAPTION", 100_000)
    assert read(folder / "t.csv", f"path,caption\na.jpg,{long}\na.jpg,after\n") == [
        Skip("caption too large", "t.csv:a.jpg"),
        Record(b"A", ("after",), "t.csv:a.jpg"),
    ]


def test_an_image_too_large_is_skipped_without_reading_it(folder):
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(single_file.LARGEST_IMAGE + 1)  # a hole: it takes no room
    assert read(folder / "t.csv", "path,caption\nlarge.jpg,a cat") == [Skip("image file too large", "t.csv:large.jpg")]


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.jpg")
    records = read(folder / "t.csv", "path,caption\npipe.jpg,a\n/dev/zero,b\n~nobody/a.jpg,c\nno://such/a.jpg,d\n")
    assert [record.reason for record in records] == [
        "unreadable file",
        "unreadable file",
        "missing file",
        "unreadable file",
    ]
    with pytest.raises(UserError, match="pipe.csv cannot be read: not a regular file"):
        os.mkfifo(folder / "pipe.csv")
        Table(str(folder / "pipe.csv"))


def test_the_table_and_its_images_may_be_remote(folder, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/set/sub/t.tsv": b"path\tcaption\nb.jpg\tone\nmemory://other/c.jpg\ttwo\ngone.jpg\tthree\n"})
    memory.pipe({"/set/sub/b.jpg": b"B", "/other/c.jpg": b"12345"})
    source = Table("memory://set/sub/t.tsv")
    assert source.read([0, 1, 2]) == [
        Record(b"B", ("one",), "t.tsv:b.jpg"),
        Record(b"12345", ("two",), "t.tsv:memory://other/c.jpg"),
        Skip("missing file", "t.tsv:gone.jpg"),
    ]
    monkeypatch.setattr(single_file, "LARGEST_IMAGE", 4)
    assert source.read([1]) == [Skip("image file too large", "t.tsv:memory://other/c.jpg")]
    local = read(folder / "t.csv", "path,caption\nmemory://other/c.jpg,a\na.jpg,b\n")
    assert [getattr(record, "image", None) for record in local] == [None, b"A"]
    with pytest.raises(UserError, match="memory://set/none.csv cannot be read"):
        Table("memory://set/none.csv")
