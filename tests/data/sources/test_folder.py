"""Folders of images, with classes and with texts."""

import os
import pathlib

import fsspec
import pytest

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import single_file
from jaxclip.data.sources.folder import Folder
from jaxclip.errors import UserError


def fill(folder: pathlib.Path, **files: bytes) -> pathlib.Path:
    """Writes files by their paths in a folder ("__" stands for "/", and "_dot_" for ".")."""
    for name, content in files.items():
        path = folder / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read(folder) -> list[Record | Skip]:
    source = Folder(str(folder))
    return source.read(range(len(source)))


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path):
    (tmp_path / "set" / "empty").mkdir(parents=True)
    fill(tmp_path / "set", tabby_cat__b_dot_jpg=b"B", tabby_cat__a_dot_jpg=b"A", dog__old__c_dot_png=b"C")
    source = Folder(f"{tmp_path}/set/")
    assert source.class_names == ["dog", "empty", "tabby cat"]
    assert source.read([2, 1, 0]) == [
        Record(b"B", ("tabby cat",), "set:tabby_cat/b.jpg", 2),
        Record(b"A", ("tabby cat",), "set:tabby_cat/a.jpg", 2),
        Record(b"C", ("dog",), "set:dog/old/c.png", 0),
    ]
    assert source.chunk_ends is None


def test_classes_are_numbered_by_their_bare_names(tmp_path):
    for name in ("red", "red fox", "red-eye", "red.old"):
        fill(tmp_path / name, a_dot_jpg=name.encode())
    assert list(Folder(str(tmp_path)).class_names) == ["red", "red fox", "red-eye", "red.old"]
    assert [(one.image, one.captions[0]) for one in read(tmp_path)] == [
        (name.encode(), name) for name in sorted(["red", "red fox", "red-eye", "red.old"], key=lambda name: name + "/")
    ]
    assert sorted((one.label, one.captions[0]) for one in read(tmp_path)) == list(
        enumerate(["red", "red fox", "red-eye", "red.old"])
    )


def test_a_text_beside_an_image_is_its_caption(tmp_path):
    fill(tmp_path, a_dot_jpg=b"A", a_dot_txt=b" a cat\n", b_dot_jpg=b"B", c_dot_jpg=b"C", c_dot_txt=b"\n")
    fill(tmp_path, a_dot_b_dot_jpg=b"D", a_dot_b_dot_txt=b"caf\xe9", e_dot_txt=b"no image")
    (tmp_path / "empty").mkdir()
    assert [(getattr(one, "captions", None), one.key.partition(":")[2]) for one in read(tmp_path)] == [
        (("caf\ufffd",), "a.b.jpg"),
        (("a cat",), "a.jpg"),
        (None, "b.jpg"),
        (None, "c.jpg"),
    ]
    assert {one.reason for one in read(tmp_path) if isinstance(one, Skip)} == {"no caption"}
    assert list(Folder(str(tmp_path)).class_names) == []  # nothing is in a class


def test_a_text_goes_before_the_class(tmp_path):
    fill(tmp_path, top_dot_jpg=b"T", top_dot_txt=b"on top", cat__a_dot_jpg=b"A", cat__a_dot_txt=b"a tabby")
    fill(tmp_path, cat__b_dot_jpg=b"B", cat__b_dot_txt=b" ")
    assert [(one.captions, one.label) for one in read(tmp_path)] == [
        (("on top",), None),
        (("a tabby",), 0),
        (("cat",), 0),
    ]


def test_images_are_known_by_their_extensions(tmp_path):
    names = ["a.jpg", "b.JPEG", "c.Png", "d.webp", "e.gif", "f.bmp", "g.tif", "h.TIFF"]
    others = ["i.json", "j.mp4", "jpg", ".jpg", ".hidden.jpg", "._a.jpg", "k.jpg.part", "l.jpg~"]
    for name in names + others:
        fill(tmp_path / "cat", **{name: b"!"})
    fill(tmp_path / ".cache", **{"m.jpg": b"!"})
    assert [one.key.rpartition("/")[2] for one in read(tmp_path)] == names


def test_links_to_images_and_to_classes_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", a_dot_jpg=b"A", sub__b_dot_jpg=b"B")
    folder = tmp_path / "set"
    fill(folder, cat__c_dot_jpg=b"C")
    (folder / "cat" / "d.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "cat" / "circle").symlink_to(folder)
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    found = [(one.key.partition(":")[2], getattr(one, "image", None) or one.reason) for one in read(folder)]
    assert found == [
        ("circle.jpg", "no caption"),
        ("cat/c.jpg", b"C"),
        ("cat/d.jpg", b"A"),
        ("cat/gone.jpg", "missing file"),
        ("dog/a.jpg", b"A"),
        ("dog/sub/b.jpg", b"B"),
        ("round/circle.jpg", "unreadable file"),
        ("round/cat/c.jpg", b"C"),
        ("round/cat/d.jpg", b"A"),
        ("round/cat/gone.jpg", "missing file"),
    ]


def test_what_is_no_file_is_not_read(tmp_path):
    fill(tmp_path, cat__a_dot_jpg=b"A", cat__b_dot_jpg__c_dot_jpg=b"C")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "zero.jpg").symlink_to("/dev/zero")
    assert [(one.key.partition(":")[2], getattr(one, "reason", "read")) for one in read(tmp_path)] == [
        ("cat/a.jpg", "read"),
        ("cat/zero.jpg", "unreadable file"),
        ("cat/b.jpg/c.jpg", "read"),
    ]


def test_names_in_no_encoding_are_read(tmp_path):
    folder = os.fsencode(tmp_path / "set") + b"/caf\xe9"
    os.makedirs(folder)
    with open(folder + b"/\xff.jpg", "wb") as file:
        file.write(b"!")
    assert read(tmp_path / "set") == [Record(b"!", ("caf\ufffd",), "set:caf\ufffd/\ufffd.jpg", 0)]


def test_files_that_cannot_be_used_are_skipped(tmp_path, monkeypatch):
    fill(tmp_path, **dict.fromkeys(["cat/a.jpg", "cat/b.jpg", "cat/c.jpg", "cat/d.jpg", "cat/e.jpg"], b"12345"))
    fill(tmp_path, **{"cat/c.txt": b"123456789", "cat/d.txt": b"1"})
    source = Folder(str(tmp_path))
    monkeypatch.setattr(single_file, "LARGEST_IMAGE", 5)
    monkeypatch.setattr(single_file, "LARGEST_CAPTION", 8)
    fill(tmp_path, **{"cat/a.jpg": b"123456"})
    for name in ("b.jpg", "d.txt", "e.jpg"):
        (tmp_path / "cat" / name).unlink()
    (tmp_path / "cat" / "e.jpg").mkdir()
    assert [one.reason for one in source.read(range(5)) if isinstance(one, Skip)] == [
        "image file too large",
        "missing file",
        "caption too large",
        "missing file",
        "unreadable file",
    ]


@pytest.mark.parametrize(
    ("name", "said"), [("none", "No such file"), ("file", "Not a directory"), ("empty", "contains no images")]
)
def test_an_unusable_folder_is_one_line_naming_it(tmp_path, name, said):
    (tmp_path / "file").write_bytes(b"!")
    fill(tmp_path, empty__a_dot_txt=b"a")
    with pytest.raises(UserError) as raised:
        Folder(str(tmp_path / name))
    message = str(raised.value)
    assert str(tmp_path / name) in message and said in message and "\n" not in message


def test_a_remote_folder_is_read_like_a_local_one(tmp_path):
    files = {"dog/a.jpg": b"A", "cat/b.png": b"B", "cat/b.txt": b"a tabby", "cat/old/c.jpg": b"C", ".git/d.jpg": b"D"}
    fill(tmp_path / "set", **files)
    fsspec.filesystem("memory").pipe({f"/far/set/{name}": content for name, content in files.items()})
    for path in ("memory://far/set", "memory://far/set/"):
        remote = Folder(path)
        assert remote.read(range(len(remote))) == read(tmp_path / "set")
        assert remote.class_names == ["cat", "dog"]
    with pytest.raises(UserError, match="memory://far/none"):
        Folder("memory://far/none")
