"""Questions of VQA v2, hypotheses of SNLI-VE and statements of NLVR2 as published, with their images."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import pytest
from commands import png

from jaxclip.data.check import __main__ as check
from jaxclip.data.record import Question, Record, Skip
from jaxclip.data.sources import open_source, questions
from jaxclip.data.sources.caption_file import CaptionFile
from jaxclip.data.sources.question_file import QuestionFile
from jaxclip.data.sources.table import Table
from jaxclip.errors import UserError

VQA = "v2_OpenEnded_mscoco_train2014_questions.json"
VQA_ANSWERS = "v2_mscoco_train2014_annotations.json"
ASKED = [(9, "What is this?", 9000), (458752, "What color is the  net?\n", 458752000), (9, "Is it red?", 9001)]
NET = Question("What color is the net?", (("dark red", 0.1), ("red", 0.7), ("pink", 0.2)))


def vqa_questions(asked: Sequence[Any] = ASKED, **others: Any) -> str:
    """A file of questions in VQA's form; `others` replace keys, and None removes one."""
    listed = [{"image_id": image, "question": text, "question_id": key} for image, text, key in asked]
    content = {"info": {"year": 2017}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "train2014"}
    content |= {"license": {"name": "CC"}, "questions": listed} | others
    return json.dumps({key: value for key, value in content.items() if value is not None})


def annotation(key: Any, answers: Sequence[Any], image: int = 9) -> dict[str, Any]:
    given = [
        {"answer": text, "answer_confidence": "yes", "answer_id": number}
        for number, text in enumerate(answers, start=1)
    ]
    others = {"question_type": "what", "multiple_choice_answer": str(answers[:1]), "answer_type": "other"}
    return {"answers": given, "image_id": image, "question_id": key} | others


ANNOTATIONS = [
    annotation(458752000, ["dark red", *["red"] * 4, "pink", *["red"] * 3, " pink "], 458752),
    annotation(9000, ["cup"] * 10),
    annotation(9001, ["yes"] * 5 + ["no"] * 5),
]


def vqa_annotations(annotations: Sequence[Any] = ANNOTATIONS) -> str:
    return json.dumps({"info": {}, "data_subtype": "train2014", "annotations": annotations, "license": {}})


def lines(objects: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(fields) + "\n" for fields in objects)


def hypothesis(
    text: Any, label: Any = "neutral", image: Any = "2407214681", key: str = "Flickr30K_ID"
) -> dict[str, Any]:
    """A line of SNLI-VE."""
    others = {"annotator_labels": [label], "captionID": f"{image}.jpg#4", "pairID": f"{image}.jpg#4r1n"}
    return others | {key: image, "gold_label": label, "sentence1": "Two men on a roof.", "sentence2": text}


SNLI_VE = [
    hypothesis("Men are inside.", "contradiction"),
    hypothesis("A dog.", "entailment", "77"),
    hypothesis("Men fix a roof.", "neutral"),
]


def statement(identifier: Any, text: Any = "Two dogs.", label: Any = "True", **others: Any) -> dict[str, Any]:
    """A line of NLVR2."""
    about = {"validation": {"1": "True"}, "synset": "acorn", "query": "acorns1", "left_url": "https://x.org/a.jpg"}
    return about | {"sentence": text, "identifier": identifier, "label": label} | others


NLVR2 = [
    statement("train-10171-0-0", directory=54),
    statement("train-10171-1-0", "The left image is dark.", "False", directory=7),
    statement("train-10171-0-1", "No dogs.", "False", directory=54),
]


def fill(folder: pathlib.Path, files: Mapping[str, str | bytes]) -> pathlib.Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def coco(tmp_path) -> pathlib.Path:
    """A folder with VQA's two files, and two images in train2014."""
    images = {f"train2014/COCO_train2014_{number:012d}.jpg": str(number).encode() for number in (9, 458752)}
    return fill(tmp_path, images | {VQA: vqa_questions(), VQA_ANSWERS: vqa_annotations()})


def test_the_answers_of_vqa_are_weighted_by_their_shares_of_the_annotators(coco):
    source = open_source(VQA, root=str(coco))
    assert isinstance(source, QuestionFile) and source.class_names == () and source.chunk_ends is None
    about_cup = (Question("What is this?", (("cup", 1.0),)), Question("Is it red?", (("yes", 0.5), ("no", 0.5))))
    assert source.read([1, 0]) == [
        Record(b"458752", (), f"{VQA}:COCO_train2014_000000458752.jpg", questions=(NET,)),
        Record(b"9", (), f"{VQA}:COCO_train2014_000000000009.jpg", questions=about_cup),
    ]


def test_questions_of_vqa_without_annotations_have_no_answers(coco, caplog):
    (coco / VQA_ANSWERS).unlink()
    (record,) = open_source(VQA, root=str(coco)).read([0])
    assert record.questions == (Question("What is this?"), Question("Is it red?")) and not caplog.messages


@pytest.mark.parametrize(
    ("name", "subtype", "image"),
    [
        ("v2_OpenEnded_mscoco_val2014_questions.json", "val2014", "val2014/COCO_val2014"),
        ("v2_OpenEnded_mscoco_val2014_questions.json", None, "images/val2014/COCO_val2014"),
        ("questions/v2_OpenEnded_mscoco_test2015_questions.json", "test2015", "test2015/COCO_test2015"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "test-dev2015", "images/test2015/COCO_test2015"),
        ("MultipleChoice_mscoco_train2014_questions.json", "train2014", "images/COCO_train2014"),
    ],
)
def test_the_images_of_vqa_are_those_of_its_split_of_coco(tmp_path, name, subtype, image):
    fill(tmp_path, {name: vqa_questions(ASKED[:1], data_subtype=subtype), f"{image}_{9:012d}.jpg": b"9"})
    assert [record.image for record in open_source(name, root=str(tmp_path)).read([0])] == [b"9"]


@pytest.mark.parametrize("key", ["Flickr30K_ID", "Flikr30kID"])
@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("snli_ve_train.jsonl", "flickr30k_images"),
        ("data/snli_ve_dev.jsonl", "flickr30k-images"),
        ("renamed.jsonl", "images"),
        ("data/x.json", "data"),
    ],
)
def test_the_hypotheses_of_snli_ve_about_an_image_are_one_record(tmp_path, name, images, key):
    # The older form has the extension.
    suffix = ".jpg" if key == "Flikr30kID" else ""
    said = [hypothesis(line["sentence2"], line["gold_label"], line["Flickr30K_ID"] + suffix, key) for line in SNLI_VE]
    fill(tmp_path, {name: lines(said), f"{images}/2407214681.jpg": b"A", f"{images}/77.jpg": b"B"})
    source = open_source(name, root=str(tmp_path))
    assert source.class_names == ("contradiction", "neutral", "entailment")
    about_roof = (Question("Men are inside.", label=0), Question("Men fix a roof.", label=1))
    base = name.rpartition("/")[2]
    assert source.read([0, 1]) == [
        Record(b"A", (), f"{base}:2407214681.jpg", questions=about_roof),
        Record(b"B", (), f"{base}:77.jpg", questions=(Question("A dog.", label=2),)),
    ]


@pytest.mark.parametrize("place", ["images/train/{}/", "train/{}/", "images/train/", "train/", "images/", ""])
def test_the_statements_of_nlvr2_about_a_pair_of_images_are_one_record(tmp_path, place):
    images = {
        f"{place.format(folder)}train-10171-{pair}-img{number}.png": f"{pair}{number}".encode()
        for folder, pair in ((54, 0), (7, 1))
        for number in range(2)
    }
    fill(tmp_path, {"data/train.json": lines(NLVR2)} | images)
    source = open_source("data/train.json", root=str(tmp_path))
    assert source.class_names == ("False", "True")
    dogs = (Question("Two dogs.", label=1), Question("No dogs.", label=0))
    first, second = source.read([0, 1])
    in_folder = "{}" in place
    assert first == Record(
        *(b"00", (), f"train.json:{'54/' * in_folder}train-10171-0-img0.png"), more_images=(b"01",), questions=dogs
    )
    assert (second.image, second.more_images) == (b"10", (b"11",))
    assert second.questions == (Question("The left image is dark.", label=0),)


@pytest.mark.parametrize("split", ["dev", "test1"])
def test_evaluation_splits_of_nlvr2_have_one_folder(tmp_path, split):
    images = {f"{split}/{split}-850-0-img{number}.png": b"%d" % number for number in range(2)}
    fill(tmp_path, {f"{split}.json": lines([statement(f"{split}-850-0-0")])} | images)
    (record,) = open_source(f"{split}.json", root=str(tmp_path)).read([0])
    assert (record.image, record.more_images) == (b"0", (b"1",))


def test_statements_without_a_label_have_none(tmp_path):
    line = statement("test2-1-0-0")
    del line["label"]
    fill(tmp_path, {"x.json": lines([line]), "test2-1-0-img0.png": b"0", "test2-1-0-img1.png": b"1"})
    assert open_source("x.json", root=str(tmp_path)).read([0])[0].questions == (Question("Two dogs."),)


def test_the_folder_of_the_images_may_follow_a_colon(tmp_path):
    fill(tmp_path, {"text/x.jsonl": lines(SNLI_VE), "far/77.jpg": b"B"})
    for folder in ("far", str(tmp_path / "far")):
        assert open_source(f"text/x.jsonl:{folder}", root=str(tmp_path)).read([1])[0].image == b"B"
    with pytest.raises(UserError, match=f"such as 2407214681.jpg, are not in {tmp_path}/near; name their folder as in"):
        open_source("text/x.jsonl:near", root=str(tmp_path))


def test_other_json_is_read_as_before(tmp_path):
    fill(
        tmp_path, {"a.jpg": b"A", "t.jsonl": '{"image": "a.jpg", "sentence": "a cat", "label": 1, "identifier": "x"}\n'}
    )
    captions = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    fill(tmp_path, {"captions_x.json": json.dumps(captions)})
    assert isinstance(open_source("t.jsonl", root=str(tmp_path)), Table)
    assert isinstance(open_source("captions_x.json", root=str(tmp_path)), CaptionFile)


def test_images_that_cannot_be_read_are_skipped(tmp_path):
    fill(tmp_path, {"train.json": lines(NLVR2), "train-10171-0-img0.png": b"", "train-10171-0-img1.png": b""})
    fill(tmp_path, {"train-10171-1-img0.png": b""})
    found = open_source("train.json", root=str(tmp_path)).read([0, 1])
    assert isinstance(found[0], Record)
    assert found[1] == Skip("missing file", "train.json:train-10171-1-img0.png")


def test_entries_of_vqa_that_cannot_be_used_are_counted(coco, caplog):
    bad = [("9", "Is it?", 1), (9, "", 2), (9, 5, 3), (-1, "Is it?", 4), (10**12, "Is it?", 5), (9, "Is it?", None)]
    content = json.loads(vqa_questions([*ASKED, *bad, (9, "Is it blue?", 6), (9, "Half \ud800?", 7)]))
    content["questions"] += [None, 5, {"image_id": 9}, [9, "Is it?", 8]]
    annotations = [*ANNOTATIONS, annotation(6, [None, 3, "", ["x"]]), annotation(7, [5, "x", "y", "x"]), None, {}]
    annotations += [annotation("9", ["x"]), annotation(8, []) | {"answers": "x"}]
    fill(coco, {VQA: json.dumps(content), VQA_ANSWERS: vqa_annotations(annotations)})
    (record,) = open_source(VQA, root=str(coco)).read([0])
    assert [question.text for question in record.questions] == ["What is this?", "Is it red?", "Is it blue?", "Half ??"]
    assert [question.answers for question in record.questions[2:]] == [(), (("x", 0.5), ("y", 0.25))]
    assert caplog.messages == [
        f"{coco}/{VQA_ANSWERS}: not used are 5 annotations without answers or the id of a question",
        f"{coco}/{VQA}: 1 questions have no answers in {VQA_ANSWERS}",
        f"{coco}/{VQA}: not used are 10 questions without a text or the ids of itself and an image",
    ]


def test_lines_of_snli_ve_that_cannot_be_used_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(questions, "LARGEST_CAPTION", 100)
    said = [*SNLI_VE, hypothesis("A cat.", "-"), hypothesis("A cat.", "maybe"), hypothesis("A cat.", ["neutral"])]
    said += [hypothesis(""), hypothesis(None), hypothesis("x" * 101), hypothesis("A cat.", image="../77")]
    said += [hypothesis("A cat.", image="http://x.org/77"), hypothesis("A cat.", image=["77"])]
    content = (
        lines(said) + "\n  \nnot json\n[1]\n" + "[" * 100_000 + "\n" + lines([hypothesis("A caf\u00e9", image=77)])
    )
    fill(tmp_path, {"x.jsonl": content, "77.jpg": b"B"})
    source = open_source("x.jsonl", root=str(tmp_path))
    assert len(source) == 2
    assert source.read([1])[0].questions == (Question("A dog.", label=2), Question("A caf\u00e9", label=1))
    assert caplog.messages == [
        f"{tmp_path}/x.jsonl: not used are 1 lines with gold_label -, on which annotators did not agree, 2 lines whose "
        "gold_label is none of contradiction, neutral, entailment, 9 lines without a Flickr30K_ID or a sentence2"
    ]


def test_lines_of_nlvr2_that_cannot_be_used_are_counted(tmp_path, caplog):
    said = [
        statement("dev-1-0-0"),
        statement("dev-1-0"),
        statement("../dev-1-0-0"),
        statement(5),
        statement("dev-1-0-1", ""),
    ]
    said += [statement("dev-1-0-1", label="Maybe"), statement("dev-1-0-1", label=None)]
    said += [statement("dev-1-0-2", label=True), statement("dev-1-0-3", directory="../..")]
    fill(tmp_path, {"dev.json": lines(said), "dev-1-0-img0.png": b"0", "dev-1-0-img1.png": b"1"})
    (record,) = open_source("dev.json", root=str(tmp_path)).read([0])
    assert record.questions == (Question("Two dogs.", label=1),) * 3
    assert caplog.messages == [
        f"{tmp_path}/dev.json: not used are 4 lines without an identifier or a sentence, 2 lines whose label is "
        "not True or False"
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param({VQA: None}, f"{VQA} cannot be read: No such file", id="missing"),
        pytest.param({VQA: "{"}, f"{VQA} is not JSON", id="broken"),
        pytest.param({VQA: "[" * 100_000}, f"{VQA} is not JSON: maximum recursion", id="deep"),
        pytest.param({VQA: "[]"}, f"{VQA} has no list of questions", id="list"),
        pytest.param({VQA: vqa_annotations()}, f"{VQA} has no list of questions", id="annotations"),
        pytest.param({VQA: vqa_questions([])}, f"{VQA} has no question about an image", id="no-question"),
        pytest.param({VQA_ANSWERS: "{"}, f"{VQA_ANSWERS} is not JSON", id="broken-annotations"),
        pytest.param({VQA_ANSWERS: vqa_questions()}, f"{VQA_ANSWERS} has no list of annotations", id="no-annotations"),
        pytest.param({"x_questions.json": vqa_questions(data_subtype="x")}, "must name COCO's images", id="no-split"),
        pytest.param({"x.jsonl": lines([hypothesis("A cat.", "-")])}, "x.jsonl has no line of Flickr30K_ID", id="snli"),
        pytest.param({"x.json": lines([statement("dev-1-0-0", "")])}, "x.json has no line of identifier", id="nlvr2"),
        pytest.param({"x.json": lines([statement("dev-1-0-0")])}, "such as dev-1-0-img0.png, are not in", id="images"),
    ],
)
def test_an_unusable_file_is_one_line_naming_it(coco, files, said):
    for name, content in files.items():
        (coco / name).unlink(missing_ok=True)
        if content is not None:
            fill(coco, {name: content})
    (name,) = files
    with pytest.raises(UserError) as raised:
        open_source(VQA if name == VQA_ANSWERS else name, root=str(coco))
    message = str(raised.value)
    assert message.startswith(str(coco)) and said in message and "\n" not in message


def test_questions_and_images_may_be_remote(remote):
    memory = fsspec.filesystem("memory")
    files = {f"{remote}/text/{VQA}": vqa_questions(), f"{remote}/text/{VQA_ANSWERS}": vqa_annotations()}
    memory.pipe({name: content.encode() for name, content in files.items()})
    memory.pipe({f"{remote}/text/dev.json": lines([statement("dev-1-0-0")]).encode()})
    memory.pipe({f"{remote}/train2014/COCO_train2014_{458752:012d}.jpg": b"N"})
    memory.pipe({f"{remote}/images/dev/dev-1-0-img{number}.png": b"%d" % number for number in range(2)})
    (record,) = open_source(f"{remote}/text/{VQA}").read([1])
    assert record.image == b"N" and record.questions == (NET,)
    (record,) = open_source(f"{remote}/text/dev.json").read([0])
    assert (record.image, record.more_images) == (b"0", (b"1",))


def test_check_shows_questions_with_their_answers(coco, capsys, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_SECONDS", 0.0)
    for path in (coco / "train2014").iterdir():
        path.write_bytes(png("red"))
    arguments = [VQA, "--root", str(coco), "--output", str(coco / "sheet.html"), "--image-size=16"]
    assert check.main(arguments) == 0
    values = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    values = {key.strip(): value.strip() for key, value in values.items()}
    assert values["usable"] == "2 of 2 (100.0%)" and "captions" not in values
    assert values["questions"] == "1 to 2 per image, of 3 to 5 words, median 3; 3 of 3 with answers"
    page = (coco / "sheet.html").read_text()
    assert "What color is the net? → dark red 10%, red 70%, pink 20%" in page and "What is this? → cup<" in page


def test_check_shows_hypotheses_with_their_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_SECONDS", 0.0)
    fill(tmp_path, {"x.jsonl": lines(SNLI_VE), "77.jpg": png("red"), "2407214681.jpg": png("blue")})
    arguments = ["x.jsonl", "--root", str(tmp_path), "--output", str(tmp_path / "sheet.html"), "--image-size=16"]
    assert check.main(arguments) == 0
    assert "median 3; contradiction 1, neutral 1, entailment 1" in capsys.readouterr().out
    assert "Men are inside. → contradiction" in (tmp_path / "sheet.html").read_text()
