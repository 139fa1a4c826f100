"""Questions, hypotheses, statements and pairs of images in tar shards."""

from __future__ import annotations

import collections
import json
import logging
import pathlib

import pytest
from tar_files import write_tar

from jaxclip.data.record import Question, Record, Skip
from jaxclip.data.sources import open_source
from jaxclip.data.sources.tar import TarShards
from jaxclip.errors import UserError

SHARED = next(
    (up / "shared/data" for up in pathlib.Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None
)
with_shared = pytest.mark.skipif(SHARED is None, reason="no shared/data beside the repository")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Where indices are kept in these tests; never the person's own."""
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))


def records(folder: pathlib.Path, *objects: dict | list) -> TarShards:
    """Shards of one image each for these objects."""
    members = []
    for number, fields in enumerate(objects):
        members += [(f"{number}.jpg", b"!"), (f"{number}.json", json.dumps(fields).encode())]
    return TarShards(str(write_tar(folder / "x.tar", members)))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (["what is it?", "cat"], Question("what is it?", (("cat", 1.0),))),
        (["what  is\nit? ", ["cat", "dog", "cat", "cat"]], Question("what is it?", (("cat", 0.75), ("dog", 0.25)))),
        ({"question": "what?", "answers": ["cat", "dog"]}, Question("what?", (("cat", 0.5), ("dog", 0.5)))),
        ({"question": "what?", "answer": "cat", "question_id": 7}, Question("what?", (("cat", 1.0),))),
        ({"question": "what?"}, Question("what?")),
        ("what?", Question("what?")),
        (["what?", None], Question("what?")),
        (["what?", ["cat", 3]], Question("what?", (("cat", 0.5),))),
    ],
)
def test_questions_are_in_the_json_of_a_record(tmp_path, entry, expected):
    bad = [None, 5, [], ["what?"], ["", "cat"], [5, "cat"], {"answers": ["cat"]}, {"question": ["what?"]}]
    source = records(tmp_path, {"questions": [*bad, entry], "items": "none"})
    assert source.read([0]) == [Record(b"!", (), "x.tar:0", questions=(expected,))]
    assert source.class_names == ()


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (["entailment", "contradiction", "neutral"], [2, 0, 1], ("contradiction", "neutral", "entailment")),
        (["Neutral", "ENTAILMENT"], [1, 2], ("contradiction", "neutral", "entailment")),
        (["True", "False", "true"], [1, 0, 1], ("False", "True")),
        ([True, False], [1, 0], ("False", "True")),
        ([7, 0, "12"], [7, 0, 12], ()),
        ([None, 3], [None, 3], ()),
        (["-", -1, "neutral"], [1], ("contradiction", "neutral", "entailment")),
    ],
)
@pytest.mark.parametrize("key", ["hypothesis", "sentence"])
def test_sentences_are_in_the_json_of_a_record_with_labels_by_name_or_index(tmp_path, labels, expected, names, key):
    items = [{key: f"said {label}", "label": label, "pair": "a#0"} for label in labels]
    bad = [None, "said", {"label": 1}, {key: "", "label": 1}, {key: 5, "label": 1}]
    source = records(tmp_path, {"captions": ["a cat"], "items": [*bad, *items]})
    (record,) = source.read([0])
    assert record.captions == ("a cat",) and source.class_names == names
    assert [question.label for question in record.questions] == expected


def test_a_name_of_a_label_that_is_not_known_is_an_error_at_the_beginning_and_a_skip_later(tmp_path):
    good, bad = ({"items": [{"sentence": "a cat", "label": label}]} for label in ("neutral", "positive"))
    with pytest.raises(UserError) as raised:
        records(tmp_path, good | {"items": []}, bad)
    assert str(raised.value) == (
        f"{tmp_path}/x.tar: the label 'positive' of an item in 1.json is none of contradiction, neutral, entailment, "
        "False, True; write the index of the class, 0, 1, ..."
    )
    found = records(tmp_path, good, bad).read([0, 1])
    assert isinstance(found[0], Record) and found[1] == Skip("unknown name of a label", "x.tar:1")


@pytest.mark.parametrize("fields", [{"questions": []}, {"items": [{"sentence": "a cat", "label": "-"}]}, [["a?", "b"]]])
def test_a_record_without_captions_and_questions_is_skipped(tmp_path, fields):
    source = records(tmp_path, {"caption": "a cat"}, fields)
    assert source.read([1]) == [Skip("no caption", "x.tar:1")]


@pytest.mark.parametrize("form", ["{}.png", "img{}.png", "{}.jpg", "img{}.WEBP"])
def test_a_pair_of_images_is_one_record(tmp_path, caplog, form):
    names = [f"train-10171-0.{form.format(number)}" for number in range(2)]
    item = {"items": [{"sentence": "The left image is dark.", "label": "True"}]}
    path = write_tar(
        tmp_path / "x.tar",
        [(names[0], b"left"), (names[1], b"right"), ("train-10171-0.json", json.dumps(item).encode())],
    )
    question = Question("The left image is dark.", label=1)
    for _ in range(2):  # indexed, and from the kept index
        assert TarShards(str(path)).read([0]) == [
            Record(b"left", (), "x.tar:train-10171-0", more_images=(b"right",), questions=(question,))
        ]
    assert not caplog.messages


def test_members_of_a_pair_may_be_apart_and_one_image_is_no_pair(tmp_path, caplog):
    members = [("a.1.png", b"a1"), ("b.0.png", b"b0"), ("b.txt", b"b"), ("c.1.png", b"c1"), ("c.txt", b"c")]
    members += [("a.txt", b"a"), ("a.0.png", b"a0")]
    path = write_tar(tmp_path / "x.tar", members)
    found = [(record.key, record.image, record.more_images) for record in TarShards(str(path)).read([0, 1])]
    assert found == [("x.tar:a", b"a0", (b"a1",)), ("x.tar:b", b"b0", ())]
    assert caplog.messages == [f"{path}: 1 records without an image are left out"]


@with_shared
@pytest.mark.parametrize(
    ("pattern", "count", "labels", "names"),
    [
        ("easy_vqa/test-00000.tar", 1000, {None: 9673}, ()),
        ("snli_ve/dev-00000.tar", 233, {0: 1260, 1: 769, 2: 1188}, ("contradiction", "neutral", "entailment")),
    ],
)
def test_real_shards_of_questions(pattern, count, labels, names, caplog):
    caplog.set_level(logging.WARNING)
    source = open_source(pattern, root=str(SHARED))
    found = [record for record in source.read(range(len(source))) if isinstance(record, Record)]
    questions = [question for record in found for question in record.questions]
    assert (len(found), source.class_names) == (count, names) and not caplog.messages
    assert collections.Counter(question.label for question in questions) == labels
    answers = {answer for question in questions for answer, _ in question.answers}
    assert len(answers) == (0 if names else 13)
