"""Choices of captions in the forms of SugarCrepe and Winoground, compared with their definitions."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
from look_up import LookUp, embedded_set
from made_source import MadeSource
from PIL import Image

from jaxclip import evaluate, inputs
from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.data.sources.shapes import Shapes
from jaxclip.errors import UserError
from jaxclip.evaluate.compositional_instances import Instance, read_instances
from jaxclip.evaluate.compositionality import Evaluator, Prepared, scores


@dataclasses.dataclass(frozen=True)
class Photos(MadeSource):
    """Records of these names, each an image of its own but for what follows a "=" in the name."""

    names: tuple[str, ...]

    def record(self, index):
        name, _, image = self.names[index].partition("=")
        return Record((image or str(index)).encode(), ("unused",), f"photos.tar:{name}")


def photos(*names: str) -> Photos:
    return Photos(len(names), names)


class Computed(LookUp):
    """An encoder whose embeddings are functions of the text and of the record."""

    def __init__(self, text, image):
        super().__init__({})
        self.of_text, self.of_record, self.read = text, image, []

    def texts(self, variables, texts):
        return np.array([self.of_text(text) for text in texts], np.float32)

    def source(self, variables, source, skips, ids=None, function="encode_image"):
        self.read = list(ids)
        found = embedded_set([self.of_record(record) for record in source.read(ids)])
        return dataclasses.replace(found, ids=self.read)


def sugarcrepe(path, *pairs: tuple[str, str, str]) -> None:
    keys = ("filename", "caption", "negative_caption")
    path.write_text(json.dumps({str(7 * row): dict(zip(keys, pair, strict=True)) for row, pair in enumerate(pairs)}))


def winoground(path, *lines: dict[str, str]) -> None:
    path.write_text("".join(json.dumps({"id": row} | line) + "\n" for row, line in enumerate(lines)))


def run(encoder, prepared, skips=None):
    return Evaluator("data", pairs="p").run(encoder, None, photos(), skips or SkipLog(), prepared)


def test_the_share_of_images_nearer_to_their_caption_by_kind_and_form(tmp_path):
    """By hand: of image a "x" (0.9) is nearer than "y" (0.1) and "z" (0.5); of image b "y" (0.9) is the nearest."""
    sugarcrepe(tmp_path / "add_att.json", ("a.jpg", "x", "y"), ("b.jpg", "x", "y"))
    sugarcrepe(tmp_path / "add_obj.json", ("val/b.jpg", "y", "z"))
    sugarcrepe(tmp_path / "swap_obj.json", ("a.JPG", "y", "z"), ("a.jpg", "x", "z"), ("b.jpg", "x", "z"))
    prepared = Evaluator("data", pairs=str(tmp_path)).prepare(photos("other", "b", "a"), "")
    assert prepared.ids == {"a": 2, "b": 1}
    table = {"x": [0.9, 0.1], "y": [0.1, 0.9], "z": [0.5, 0.5]}
    result = run(LookUp(table, dataclasses.replace(embedded_set([[0, 1], [1, 0]]), ids=[1, 2])), prepared)
    assert result.metrics == {
        "acc": pytest.approx(3 / 6),
        "text_acc": pytest.approx(3 / 6),
        "mean_per_kind_acc": pytest.approx((1 / 2 + 1 + 1 / 3) / 3),
        "acc_add": pytest.approx((1 / 2 + 1) / 2),
        "acc_swap": pytest.approx(1 / 3),
        "acc_add_att": pytest.approx(1 / 2),
        "acc_add_obj": pytest.approx(1),
        "acc_swap_obj": pytest.approx(1 / 3),
        "tied": 0,
    }
    assert result.summary == "caption above its negative in 50.0% of 6 pairs (add 75.0%, swap 33.3%)"
    assert result.headline == ("50.0%", "caption above its negative\nchance 50%")
    assert result.tables[1].rows == {"add_att": ("50.0%", 2), "add_obj": ("100.0%", 1), "swap_obj": ("33.3%", 3)}


def test_text_image_and_group_score_are_those_of_winoground(tmp_path):
    """The definitions of section 4 of the paper, f, g and h, of 40 instances of random similarities."""
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, 80, 6))
    lines = [
        {f"{what}_{place}": f"{what}-{2 * row + place}" for what in ("image", "caption") for place in (0, 1)}
        | {"collapsed_tag": ("Object", "Relation")[row % 2], "tag": f"fine {row}"}
        for row in range(40)
    ]
    winoground(tmp_path / "examples.jsonl", *lines)
    source = photos(*(f"image-{number}.png" for number in range(80)))
    prepared = Evaluator("data", pairs=str(tmp_path / "examples.jsonl")).prepare(source, "")
    table = {f"caption-{number}": row for number, row in enumerate(texts)}
    result = run(LookUp(table, embedded_set(images)), prepared)

    found = collections.defaultdict(list)
    for row in range(40):
        (c0_i0, c0_i1), (c1_i0, c1_i1) = texts[2 * row : 2 * row + 2] @ images[2 * row : 2 * row + 2].T
        found["text_acc"].append(c0_i0 > c1_i0 and c1_i1 > c0_i1)
        found["image_acc"].append(c0_i0 > c0_i1 and c1_i1 > c1_i0)
        found["acc"].append(found["text_acc"][-1] and found["image_acc"][-1])
    expected = {name: np.mean(values) for name, values in found.items()}
    expected |= {"acc_Object": np.mean(found["acc"][::2]), "acc_Relation": np.mean(found["acc"][1::2])}
    expected |= {"mean_per_kind_acc": expected["acc"], "tied": 0}
    assert result.metrics == pytest.approx(expected) and 0 < expected["acc"] < expected["text_acc"] < 1
    group, text, image = (f"{expected[name]:.1%}" for name in ("acc", "text_acc", "image_acc"))
    assert result.summary == f"group {group}, text {text}, image {image} of 40 instances"


def test_random_similarities_get_the_figures_of_chance():
    """Within four standard errors of the shares of the orders of 2 and of 4 numbers."""
    rng = np.random.default_rng(0)
    count = 20_000
    for images, chances in ((1, {"acc": 1 / 2}), (2, {"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6})):
        found = scores(rng.standard_normal((count, images, 2)))
        for name, chance in chances.items():
            assert abs(found[name].mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / count)


def test_a_collapsed_model_gets_nothing_and_is_said_to_tie():
    one = Prepared([Instance(("a",), ("x", "y"), "")], {"a": 0})
    two = Prepared([Instance(("a", "b"), ("x", "y"), "")], {"a": 0, "b": 1})
    for prepared in (one, two):
        result = run(LookUp({"x": [1.0, 1.0], "y": [1.0, 1.0]}, embedded_set(np.ones((2, 2)))), prepared)
        assert result.metrics["acc"] == result.metrics["text_acc"] == 0 and result.metrics["tied"] == 1
        assert result.summary.endswith(", 100.0% equal")


def test_images_that_data_lacks_are_counted_and_their_instances_left_out(tmp_path):
    sugarcrepe(tmp_path / "p.json", ("a.jpg", "x", "y"), ("gone.jpg", "y", "x"), ("gone.jpg", "x", "y"))
    prepared = Evaluator("data", pairs="p.json").prepare(photos("a"), str(tmp_path))
    skips = SkipLog()
    result = run(LookUp({"x": [1.0], "y": [0.0]}, embedded_set([[1.0]])), prepared, skips)
    assert result.metrics["acc"] == 1 and result.summary.startswith("caption above its negative in 100.0% of 1 pairs")
    assert str(skips) == "1 x no image of this name (such as gone)"
    with pytest.raises(UserError, match=r"^no record can be used: 1 x no image"):
        run(LookUp({}, dataclasses.replace(embedded_set([[1.0]]), ids=[9])), prepared)


def test_data_with_none_of_the_images_are_one_line_with_both_names(tmp_path):
    sugarcrepe(tmp_path / "p.json", ("a.jpg", "x", "y"), ("b.jpg", "x", "y"))
    with pytest.raises(UserError, match=r"^pairs: none of its 2 images, such as a, .* such as photos.tar:cc;"):
        Evaluator("data", pairs="p.json").prepare(photos("c", "cc"), str(tmp_path))


def test_a_name_is_of_one_image(tmp_path):
    sugarcrepe(tmp_path / "p.json", ("a.jpg", "x", "y"))
    evaluator = Evaluator("data", pairs=str(tmp_path / "p.json"))
    assert evaluator.prepare(photos("a=same", "b", "more/a=same"), "").ids == {"a": 0}
    with pytest.raises(UserError, match=r"^data: photos.tar:a and photos.tar:more/a are different images"):
        evaluator.prepare(photos("a=one", "more/a=another"), "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.json", None, "p.json cannot be read: No such file"),
        ("p.json", "[", "p.json is not JSON"),
        ("p.json", "[" * 100_000, "p.json is not JSON"),
        ("p.json", "{}", 'p.json must be {"ID"'),
        ("p.json", '["a"]', 'p.json must be {"ID"'),
        ("p.json", '{"5": {"filename": "a.jpg", "caption": "x"}}', "'5' of .*p.json must have filename, caption and"),
        ("p.json", '{"5": {"filename": "a", "caption": "x", "negative_caption": " "}}', "'5' of .* must have"),
        ("p.json", '{"5": 1}', "'5' of .* must have"),
        ("p.jsonl", "\n", "p.jsonl has no lines"),
        ("p.jsonl", "\n{", "line 2 of .*p.jsonl is not JSON"),
        ("p.jsonl", '{"image_0": "a", "image_1": "b", "caption_0": "x"}', "line 1 of .* must have image_0, image_1,"),
        (".", None, "has no .json files"),
    ],
)
def test_pairs_that_cannot_be_used_are_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"^pairs: [^\n]*{said}[^\n]*$"):
        read_instances(str(tmp_path / name))


def test_pairs_are_needed_unless_the_source_makes_them():
    evaluators = evaluate.from_config({"it": {"task": "compositionality", "data": "shapes:seen"}})
    with pytest.raises(UserError, match=r"^config.evals.it.data: shapes:seen has no scenes of two objects"):
        evaluate.Evaluation("it", evaluators["it"])
    with pytest.raises(UserError, match=r"^pairs is missing: give "):
        Evaluator("data").prepare(photos("a"), "")


def test_winoground_is_read_as_its_files_lie(tmp_path):
    (tmp_path / "images").mkdir()
    for number in (0, 1):
        Image.new("RGB", (4, 4), (99 * number, 0, 0)).save(tmp_path / "images" / f"ex_0_img_{number}.png")
    line = {"image_0": "ex_0_img_1", "image_1": "ex_0_img_0", "caption_0": "a red square ", "caption_1": "\ud800"}
    winoground(tmp_path / "examples.jsonl", line)
    evaluator = Evaluator(f"folder:{tmp_path}", pairs="examples.jsonl")
    source = open_source(evaluator.data)
    prepared = evaluator.prepare(source, str(tmp_path))
    assert prepared.instances == [Instance(("ex_0_img_1", "ex_0_img_0"), ("a red square", "?"), "")]
    assert prepared.ids == {"ex_0_img_0": 0, "ex_0_img_1": 1}
    evaluate.Evaluation("it", evaluator, str(tmp_path))


def test_a_bag_of_words_cannot_tell_the_swaps_of_shapes():
    """Its captions have the words of their negatives, but where one is replaced."""
    source = Shapes("validation", 16)
    words = sorted({word for i in range(len(source)) for word in source.negatives(i)[0].split()} | {"right", "left"})

    def bag(text):
        return [text.split().count(word) for word in words]

    evaluator = Evaluator("shapes:validation")
    encoder = Computed(bag, lambda record: bag(source.negatives(int(record.key.rpartition("/")[2]))[0]))
    encoder.image = inputs.Image(16)
    prepared = evaluator.prepare(source, "")
    result = evaluator.run(encoder, None, source, SkipLog(), prepared)
    kinds = collections.Counter(instance.kind for instance in prepared.instances)
    assert kinds["swap_obj"] == kinds["replace_rel"] == 1000 and min(kinds["swap_color"], kinds["swap_size"]) > 400
    found = {kind: result.metrics[f"acc_{kind}"] for kind in kinds}
    assert found == {"replace_rel": 1, "swap_color": 0, "swap_obj": 0, "swap_size": 0}
    assert [example.right for example in result.examples] == [False] * 6 + [True] * 6
    first = prepared.instances[next(row for row, one in enumerate(prepared.instances) if one.kind != "replace_rel")]
    assert first.captions[0] in result.examples[0].text and first.captions[1] in result.examples[0].text
    assert (result.examples[0].image == source.read([int(first.images[0])])[0].image).all()


def test_all_pairs_of_sugarcrepe_are_used(shared_data):
    """47 of its photographs, of which each is embedded once; a model that knows nothing is right in half of them."""
    folder = shared_data / "sugarcrepe"
    evaluator = Evaluator(str(folder / "val-00000.tar"), pairs=str(folder))
    source = open_source(evaluator.data)

    def hashed(content: bytes):
        return np.random.default_rng(list(hashlib.blake2b(content).digest())).standard_normal(64)

    encoder = Computed(lambda text: hashed(text.encode()), lambda record: hashed(record.image))
    skips = SkipLog()
    prepared = evaluator.prepare(source, "")
    result = evaluator.run(encoder, None, source, skips, prepared)
    assert sorted(encoder.read) == list(range(len(source))) and len(source) == 47 and not skips.total
    published = {path.stem: len(json.loads(path.read_text())) for path in folder.glob("*.json")}
    assert {row: cells[-1] for row, cells in result.tables[1].rows.items()} == published
    assert sum(published.values()) == 211 and result.metrics["tied"] == 0
    assert abs(result.metrics["acc"] - 1 / 2) < 4 * np.sqrt(1 / 4 / 211)
    forms = {kind.partition("_")[0] for kind in published}
    for form, (kind, _) in itertools.product(forms, published.items()):
        assert f"acc_{form}" in result.metrics and f"acc_{kind}" in result.metrics
