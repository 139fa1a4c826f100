"""Captions of COCO, Flickr8k and Flickr30k as published, with their images."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import pytest
from commands import png

from jaxclip.data.check import __main__ as check
from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import caption_file, open_source
from jaxclip.data.sources.caption_file import CaptionFile
from jaxclip.errors import UserError

TOKENS = "a.jpg#0\tA cat .\na.jpg#1\tA pet , asleep .\nb.jpg#0\tA dog .\n"
TABLE = 'image,caption\na.jpg,A cat .\na.jpg,"A pet , asleep ."\nb.jpg,A dog .\n'
CAPTIONS = [(7, "A cat ."), (9, "A dog ."), (7, "A pet , asleep .")]


def coco(captions: Sequence[tuple[Any, Any]] = CAPTIONS, names: Mapping[int, str] | None = None, **others: Any) -> str:
    """A file in COCO's form."""
    images = [{"license": 3, "file_name": name, "id": key} for key, name in (names or {7: "a.jpg", 9: "b.jpg"}).items()]
    annotations = [{"image_id": image, "id": row, "caption": text} for row, (image, text) in enumerate(captions)]
    return json.dumps({"info": {"id": 1}, "images": images, "licenses": [], "annotations": annotations} | others)


def instances(objects: Sequence[tuple[Any, Any]] = ((7, 90), (7, 17), (7, 90)), **others: Any) -> str:
    """A file of objects, each an image and a category; polygons come first, as in COCO's, or last."""
    shape = {"segmentation": [[510.66, 423.01, 511.72], [1, -2e-3]], "area": 702.1}
    annotations = [shape | {"image_id": image, "category_id": kind} for image, kind in objects]
    annotations.append({"image_id": 7, "category_id": 17, "segmentation": {"counts": [1, 2], "size": [3, 4]}})
    annotations.append({"image_id": 7, "category_id": 90} | shape)
    kinds = ((17, "cat"), (3, "car"), (90, "x"))
    categories = [{"supercategory": "thing", "id": key, "name": name} for key, name in kinds]
    return coco(**({"annotations": annotations, "categories": categories} | others))


def fill(folder: pathlib.Path, files: Mapping[str, str | bytes]) -> pathlib.Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder with the images a.jpg and b.jpg."""
    return fill(tmp_path / "set", {"a.jpg": b"A", "b.jpg": b"B"})


def read(path: pathlib.Path, content: str | bytes) -> list[Record | Skip]:
    source = CaptionFile(str(fill(path.parent, {path.name: content}) / path.name))
    return source.read(range(len(source)))


@pytest.mark.parametrize(
    ("captions", "images"),
    [
        ("annotations/captions_train2017.json", "train2017"),
        ("annotations/captions_train2017.json", "images/train2017"),
        ("captions_val2014.json", "val2014"),
        ("annotations/captions_val2014.json", "images"),
        ("annotations/train.json", "train"),
        ("captions.json", ""),
        ("Flickr8k_text/Flickr8k.token.txt", "Flicker8k_Dataset"),
        ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k_Dataset/Flicker8k_Dataset"),
        ("Flickr8k.token.txt", "Flicker8k_Dataset"),
        ("Flickr8k.lemma.token.txt", ""),
        ("results_20130124.token", "flickr30k-images"),
        ("flickr30k/results_20130124.token", "flickr30k-images"),
        ("captions.txt", "Images"),
    ],
)
def test_the_layouts_of_the_published_archives_need_no_more_than_the_captions(tmp_path, captions, images):
    content = coco() if captions.endswith("json") else TABLE if captions == "captions.txt" else TOKENS
    place = f"data/{images}" if images else os.path.dirname(f"data/{captions}")
    fill(tmp_path, {f"data/{captions}": content, f"{place}/a.jpg": b"A", f"{place}/b.jpg": b"B"})
    source = open_source(f"data/{captions}", root=str(tmp_path))
    assert isinstance(source, CaptionFile) and source.class_names == [] and source.chunk_ends is None
    base = captions.rpartition("/")[2]
    assert source.read([1, 0]) == [
        Record(b"B", ("A dog .",), f"{base}:b.jpg"),
        Record(b"A", ("A cat .", "A pet , asleep ."), f"{base}:a.jpg"),
    ]


def test_relative_paths_start_from_the_working_directory(folder, monkeypatch):
    fill(folder, {"text/captions_x.json": coco()})
    for place, text in ((folder, "text/captions_x.json"), (folder / "text", "captions_x.json")):
        monkeypatch.chdir(place)
        assert [record.image for record in open_source(text).read([0, 1])] == [b"A", b"B"]


def test_the_folder_of_the_images_may_follow_a_colon(tmp_path):
    fill(tmp_path, {"text/x.token": TOKENS, "far/away/a.jpg": b"A", "text/only": "b\n"})
    for folder in ("far/away", str(tmp_path / "far" / "away")):
        source = open_source(f"text/x.token:{folder}", root=str(tmp_path))
        assert source.read([0, 1])[0].image == b"A" and len(source) == 2
    with pytest.raises(UserError, match=f"such as a.jpg, are not in {tmp_path}/near; name their folder as in x.token:"):
        open_source("text/x.token:near", root=str(tmp_path))


@pytest.mark.parametrize("names", ["b.jpg\n", "\n b \r\n\n", "\ufeffb.jpg", "b.jpg\nb"])
@pytest.mark.parametrize("captions", ["captions_x.json", "x.token.txt", "captions.txt"])
def test_a_list_in_brackets_says_which_images_are_used(folder, names, captions):
    content = coco() if captions.endswith("json") else TABLE if captions == "captions.txt" else TOKENS
    fill(folder, {captions: content, "lists/dev.txt": names})
    for text in (f"{captions}[lists/dev.txt]", f"{captions}[{folder}/lists/dev.txt]", f"{captions}[lists/dev.txt]:."):
        source = open_source(text, root=str(folder))
        assert source.read(range(len(source))) == [Record(b"B", ("A dog .",), f"{captions}:b.jpg")]


def test_names_of_a_list_without_captions_are_counted(folder, caplog):
    fill(folder, {"x.token": TOKENS, "dev.txt": "b.jpg\nc.jpg\nd.jpg\n"})
    assert len(open_source("x.token[dev.txt]", root=str(folder))) == 1
    assert caplog.messages == [f"{folder}/dev.txt: not used are 2 names of images without captions"]


@pytest.mark.parametrize(
    ("names", "said"), [(None, "cannot be read: No such file"), ("x.jpg\ny\n", "none of its 2 lines is one")]
)
def test_an_unusable_list_is_one_line(folder, names, said):
    fill(folder, {"x.token": TOKENS} | ({} if names is None else {"dev.txt": names}))
    with pytest.raises(UserError, match=f"^{folder}/dev.txt.*{said}"):
        open_source("x.token[dev.txt]", root=str(folder))


def test_line_breaks_within_a_caption_are_spaces_and_empty_captions_are_none(folder):
    captions = [(7, " A  cat\n on a\r\nmat. \n"), (7, " \n"), (7, "half a pair \ud800"), (9, "")]
    assert read(folder / "x.json", coco(captions)) == [
        Record(b"A", ("A cat on a mat.", "half a pair ?"), "x.json:a.jpg"),
        Skip("no caption", "x.json:b.jpg"),
    ]


def test_images_without_captions_or_files_are_skipped(folder):
    (folder / "d.jpg").mkdir()
    names = {7: "a.jpg", 8: "gone.jpg", 9: "b.jpg", 10: "d.jpg"}
    assert read(folder / "x.json", coco([(7, "A cat."), (8, "A bus."), (10, "A car.")], names)) == [
        Record(b"A", ("A cat.",), "x.json:a.jpg"),
        Skip("missing file", "x.json:gone.jpg"),
        Skip("no caption", "x.json:b.jpg"),
        Skip("unreadable file", "x.json:d.jpg"),
    ]


def test_instances_beside_the_captions_are_the_tags(folder):
    # c.jpg is not in the list of the instances: whether it has objects is not known.
    names = {7: "a.jpg", 9: "b.jpg", 1: "c.jpg"}
    fill(folder, {"captions_x.json": coco([(7, "A cat."), (1, "A bus.")], names), "instances_x.json": instances()})
    fill(folder, {"c.jpg": b"C"})
    source = open_source(f"{folder}/captions_x.json")
    assert source.class_names == ["car", "cat", "x"]  # by their ids
    assert source.read([0, 1, 2]) == [
        Record(b"A", ("A cat.",), "captions_x.json:a.jpg", tags=(1, 2)),
        Record(b"B", (), "captions_x.json:b.jpg", tags=()),
        Record(b"C", ("A bus.",), "captions_x.json:c.jpg", tags=None),
    ]


def test_a_caption_may_say_what_a_polygon_is(folder):
    said = '"segmentation": [1, 2], "segmentation":[3]'
    assert read(folder / "x.json", coco([(7, said)]))[0] == Record(b"A", (said,), "x.json:a.jpg")


def test_entries_that_cannot_be_used_are_counted(folder, caplog):
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}, {"id": 7, "file_name": "a.jpg"}]
    images += [{"id": 9}, {"file_name": "b.jpg"}, {"id": [9], "file_name": "b.jpg"}, {"id": 9, "file_name": 3}, "b.jpg"]
    captions = [(7, "A cat."), (8, "A dog."), ("7", "A dog."), (7, None), (7, ["A dog."]), (7, {"image_id": 7})]
    captions += [([7], "A dog."), ({"image_id": 7, "caption": [7]}, "A dog."), (None, "A dog."), (7.5, "A dog.")]
    content = json.loads(coco(captions, images=images))
    content["annotations"] += [None, 5, {"caption": "A dog."}]
    fill(folder, {"captions_x.json": json.dumps(content)})
    objects = [(7, 17), (7, 4), (8, 17), (7, "17"), ([7], 17), (7, [17]), (7, None)]
    fill(folder, {"instances_x.json": instances(objects)})
    source = CaptionFile(f"{folder}/captions_x.json")
    assert source.read(range(len(source))) == [
        Record(b"A", ("A cat.",), "captions_x.json:a.jpg", tags=(1, 2)),
    ]
    assert caplog.messages == [
        f"{folder}/captions_x.json: not used are 1 images with the id of another, 5 images without an id or a file "
        "name, 2 captions of images that are not in the list, 10 annotations without a caption",
        f"{folder}/instances_x.json: not used are 6 objects without an image or a category of the lists",
    ]


@pytest.mark.parametrize("line", ["a.jpg\tA dog.", "a.jpg#\tA dog.", "#0\tA dog.", "a.jpg#0 A dog.", "a.jpg#x\tA dog."])
def test_lines_that_are_not_captions_are_counted(folder, caplog, line):
    found = read(folder / "x.token", f"\n{line}\r\na.jpg#0\tA cat.\r\na#1.jpg#2\tA bus\tor car.\r\n\r\n")
    assert found == [
        Record(b"A", ("A cat.",), "x.token:a.jpg"),
        Skip("missing file", "x.token:a#1.jpg"),
    ]
    assert caplog.messages == [f"{folder}/x.token: not used are 1 lines that are not NAME#NUMBER, a tab and a caption"]


def test_rows_with_too_many_fields_are_counted(folder, caplog):
    assert len(read(folder / "captions.txt", f"{TABLE}a.jpg,A cat, asleep\n")) == 2
    assert caplog.messages == [f"{folder}/captions.txt: not used are 1 rows with too many fields"]


def test_enormous_captions_and_bytes_that_are_not_utf_8_are_counted(folder, caplog, monkeypatch):
    monkeypatch.setattr(caption_file, "LARGEST_CAPTION", 100)
    content = b"\xef\xbb\xbfa.jpg#0\tcaf\xe9\na.jpg#1\t" + 101 * b"y" + b"\na.jpg#2\t" + 100 * b"y"
    assert read(folder / "x.token", content) == [Record(b"A", ("caf\ufffd", 100 * "y"), "x.token:a.jpg")]
    assert caplog.messages == [
        f"{folder}/x.token: not used are 1 captions that are too large",
        f"{folder}/x.token: 1 captions have bytes that are not UTF-8, which became U+FFFD",
    ]


NO_LISTS = "has no lists of images and annotations, as COCO's files have; for other data, write a .jsonl file"
NO_CAPTION = "has no caption of the images in its list"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("x.json", None, "cannot be read: No such file", id="missing"),
        pytest.param("x.json", "", "is not JSON: Expecting value", id="empty"),
        pytest.param("x.json", coco()[:-2], "is not JSON: Expecting", id="truncated"),
        pytest.param("x.json", "[" * 100_000, "is not JSON: maximum recursion", id="deep"),
        pytest.param("x.json", '{"images": ' + "9" * 5000, "is not JSON: Exceeds the limit", id="long-number"),
        pytest.param("x.json", b"\x80\x04K\x01.", "is not JSON", id="pickle"),
        pytest.param("x.json", "[]", NO_LISTS, id="list"),
        pytest.param("x.json", "{}", NO_LISTS, id="object"),
        pytest.param("x.json", '{"image_id": 1, "images": [], "annotations": []}', NO_LISTS, id="annotation"),
        pytest.param("x.json", coco(images={}), NO_LISTS, id="images-no-list"),
        pytest.param("x.json", coco(annotations=None), NO_LISTS, id="annotations-no-list"),
        pytest.param("x.json", coco(images=[]), NO_CAPTION, id="no-images"),
        pytest.param("x.json", coco([]), NO_CAPTION, id="no-captions"),
        pytest.param("instances_x.json", instances(), NO_CAPTION, id="instances"),
        pytest.param("x.json", coco(names={7: "http://x.org/a.jpg"}), "'http://x.org/a.jpg' is a url", id="url"),
        pytest.param("x.token", "", "has no line of NAME#NUMBER, a tab and a caption", id="no-line"),
        pytest.param("x.token.txt", TABLE, "has no line of NAME#NUMBER, a tab and a caption", id="table"),
        pytest.param("captions.txt", TOKENS, "has no column path or", id="tokens"),
        pytest.param("captions.txt", "image,caption\n", "has no rows", id="header-only"),
        pytest.param("x.token", "gone.jpg#0\tA cat.", "such as gone.jpg, are not in", id="images-elsewhere"),
    ],
)
def test_an_unusable_file_is_one_line_naming_it(folder, name, content, said):
    if content is not None:
        fill(folder, {name: content})
    with pytest.raises(UserError) as raised:
        open_source(name, root=str(folder))
    message = str(raised.value)
    assert message.startswith(f"{folder}/{name}") and said in message and "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("{}", NO_LISTS),
        (coco(), "categories must be a list of objects"),
        (instances(categories=[]), "categories must be a list of objects"),
        (instances(categories={"id": 1}), "categories must be a list of objects"),
        (instances(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "car"}]), "an id of their own"),
        (instances(categories=[{"id": 1, "name": "cat"}, {"id": "2", "name": "car"}]), "an id of their own"),
        (instances(categories=[{"id": 1, "name": "cat"}, {"id": 2}]), "with a name"),
    ],
)
def test_unusable_instances_beside_the_captions_are_one_line_naming_them(folder, content, said):
    fill(folder, {"captions_x.json": coco(), "instances_x.json": content})
    with pytest.raises(UserError, match=f"^{folder}/instances_x.json") as raised:
        open_source("captions_x.json", root=str(folder))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_paths_of_images_are_relative_to_their_folder_or_absolute(folder):
    fill(folder, {"train/c.jpg": b"C"})
    names = {1: "c.jpg", 2: "../a.jpg", 3: str(folder / "b.jpg"), 4: "a\0.jpg", 5: "x" * 5000, 6: "no://such/a.jpg"}
    found = read(folder / "captions_train.json", coco([(number, "x") for number in names], names))
    assert [record.image for record in found[:3]] == [b"C", b"A", b"B"]
    assert [skip.reason for skip in found[3:]] == ["unreadable file"] * 3


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "x.json")
    os.mkfifo(folder / "c.jpg")
    with pytest.raises(UserError, match="x.json cannot be read: not a regular file"):
        open_source("x.json", root=str(folder))
    found = read(folder / "y.token", f"c.jpg#0\tx\n{TOKENS}")
    assert found[0] == Skip("unreadable file", "y.token:c.jpg")


def test_captions_and_images_may_be_remote(remote, folder):
    memory = fsspec.filesystem("memory")
    files = {"text/captions_x.json": coco(), "text/instances_x.json": instances(), "text/dev.txt": "b"}
    memory.pipe({f"{remote}/{name}": content.encode() for name, content in files.items()})
    memory.pipe({f"{remote}/x/a.jpg": b"A", f"{remote}/x/b.jpg": b"B", f"{remote}/y/b.jpg": b"Y"})
    source = open_source(f"{remote}/text/captions_x.json")
    assert source.read([0, 1]) == [
        Record(b"A", ("A cat .", "A pet , asleep ."), "captions_x.json:a.jpg", tags=(1, 2)),
        Record(b"B", ("A dog .",), "captions_x.json:b.jpg", tags=()),
    ]
    (only,) = open_source(f"text/captions_x.json[dev.txt]:{remote}/y", root=remote).read([0])
    assert only.image == b"Y"
    fill(folder, {"x.token": TOKENS})
    assert open_source(f"{folder}/x.token:{remote}/x").read([1])[0].image == b"B"
    with pytest.raises(UserError, match=f"^{remote}/none.json cannot be read"):
        open_source(f"{remote}/none.json")


def test_the_images_of_captions_at_the_top_of_a_bucket_are_not_looked_for_in_other_buckets(remote):
    bucket = remote.removeprefix("memory://")
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/{bucket}/captions_{bucket}x.json": coco().encode(), f"/{bucket}/a.jpg": b"A"})
    memory.pipe({f"/{bucket}x/a.jpg": b"of another"})
    try:
        assert open_source(f"{remote}/captions_{bucket}x.json").read([0])[0].image == b"A"
    finally:
        memory.rm(f"/{bucket}x", recursive=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("captions_x.json", coco()), ("Flickr8k.token.txt", TOKENS), ("captions.txt", TABLE)],
    ids=["coco", "flickr8k", "kaggle"],
)
def test_check_shows_the_images_with_all_captions(tmp_path, capsys, monkeypatch, name, content):
    monkeypatch.setattr(check, "_TIMED_SECONDS", 0.0)
    fill(tmp_path, {name: content, "images/a.jpg": png("red"), "images/b.jpg": png("blue")})
    arguments = [name, "--root", str(tmp_path), "--output", str(tmp_path / "sheet.html"), "--image-size=16"]
    assert check.main(arguments) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    values = {key.strip(): value.strip() for key, value in lines.items()}
    assert values["records"] == "2; 2 sampled, spread evenly" and values["usable"] == "2 of 2 (100.0%)"
    assert values["captions"] == "1 to 2 per image, of 3 to 3 words, median 3"
