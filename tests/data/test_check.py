"""Statistics of a source before training, and the command that shows them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import png, recipe, write_tar
from made_source import MadeSource
from paths import MODELS

from jaxclip import command_line, inputs
from jaxclip.config import Config
from jaxclip.data import findings
from jaxclip.data.check import __main__ as check
from jaxclip.data.check import contact_sheet, recipe_sample
from jaxclip.data.record import Record, Skip
from jaxclip.errors import UserError
from jaxclip.parsing import parse
from jaxclip.run import build


@dataclasses.dataclass(frozen=True)
class Some(MadeSource):
    """A source of which every `period`-th record is bad."""

    period: int

    def record(self, index: int) -> Record | Skip:
        key = f"{index % 4}.tar:{index}"
        if self.period and index % self.period == 0:
            return Skip("unreadable shard", key) if index % 2 else Record(b"<html>", ("a page",), key)
        return Record(np.full((5, 9, 3), 7, np.uint8), (f"image {index}", "another"), key)


def test_a_sample_is_spread_over_the_whole_source():
    found = findings.look_at(Some(1000, 0), 10)
    assert found.records == 1000 and found.looked_at == 10
    assert [example.key for example in found.examples] == [f"{i % 4}.tar:{i}" for i in range(0, 1000, 111)]
    assert found.examples[3].size == (9, 5) and found.examples[3].captions == ("image 333", "another")


def test_images_that_are_almost_black_are_counted():
    assert findings.look_at(Some(10, 0), 10).dark_images == 10


def test_unusable_records_are_counted_by_reason_and_by_shard():
    found = findings.look_at(Some(60, 5), 60)
    assert found.skips.counts == {"unreadable shard": 6, "not an image": 6}
    assert found.at_fault == {"0.tar": 3, "1.tar": 3, "2.tar": 3, "3.tar": 3}
    assert len(found.examples) == 48


def test_a_run_starts_on_data_that_can_be_used():
    findings.preflight(Some(1, 0), "data.train", max_skip_rate=0.0)
    findings.preflight(Some(1000, 0), "data.train", max_skip_rate=0.0)
    findings.preflight(Some(1000, 7), "data.train", max_skip_rate=0.2)


@pytest.mark.parametrize(
    ("period", "rate", "said"),
    [
        (1, 1.0, "data.train: none of 64 sampled records can be used: 32 x not an image"),
        (2, 0.1, "data.train: 32 of 64 sampled records cannot be used, more than data.max_skip_rate=0.1 allows"),
    ],
)
def test_a_run_does_not_start_on_data_that_cannot(period, rate, said):
    with pytest.raises(UserError, match=said):
        # 64 of the ids 0, 1, ..., 63
        findings.preflight(Some(64, period), "data.train", max_skip_rate=rate)


class Page(HTMLParser):
    """The texts and tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_the_sheet_shows_captions_as_text_and_a_part_of_very_long_ones():
    found = findings.look_at(Some(3, 0), 3)
    captions = ("<script>alert(1)</script>", "x" * 5000, "half a pair \ud800")
    found.examples = [
        dataclasses.replace(example, captions=(caption,))
        for example, caption in zip(found.examples, captions, strict=True)
    ]
    text = contact_sheet.page("a & b", [("source", "a & b"), ("records", "3")], found, [4, 79, 5])
    page = Page(text)
    assert page.tags.count("img") == 3 and "script" not in page.tags
    assert "<script>alert(1)</script>" in page.texts and "half a pair ?" in page.texts
    assert max(len(part) for part in page.texts if part.startswith("x")) == 240
    assert "79 tokens · 9 × 5" in page.texts
    assert len(text) < 20_000


def test_the_sheet_shows_a_part_of_many():
    found = findings.look_at(Some(500, 0), 500)
    page = Page(contact_sheet.page("many", [], found, [3] * 500))
    assert page.tags.count("img") == 60


@pytest.fixture
def shard(tmp_path: pathlib.Path) -> pathlib.Path:
    members = {}
    for index in range(6):
        members[f"{index}.png"] = png("black" if index == 4 else "red", "black") if index else b"<html>no image</html>"
        members[f"{index}.txt"] = f"the caption of number {index}".encode() + b"\xff" * (index == 5)
    return write_tar(tmp_path / "pairs.tar", members)


def test_the_command_prints_a_table_and_writes_the_sheet(shard, capsys, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_SECONDS", 0.0)
    output = shard.with_name("sheet.html")
    arguments = ["pairs.tar", "--root", str(shard.parent), "--output", str(output), "--image-size=16"]
    assert check.main(arguments) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    values = {name.strip(): value.strip() for name, value in lines.items()}
    assert values["records"] == "6; 6 sampled, spread evenly"
    assert values["usable"] == "5 of 6 (83.3%)"
    assert values["skipped"] == "1 x not an image, such as pairs.tar:0"
    assert values["at fault"] == "pairs.tar: 1"
    assert values["images"].startswith("20 x 20 (median)")
    assert values["captions"] == "1 per image, of 5 to 5 words, median 5"
    assert values["encoding"] == "1 captions have bytes that are not UTF-8, which became U+FFFD"
    assert values["dark"] == "1 images are almost black"
    assert "images/s to 16 x 16 pixels" in values["speed"]
    assert output.read_text().count("<img") == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a source, such as 'shards/*.tar', or --config=RECIPE"),
        (["nothing.xyz"], "is not a data source"),
        (["missing.tar"], "does not exist"),
        (["pairs.tar", "--sample=0"], "must be at least 1"),
        (["pairs.tar", "--output=/no/such/folder/x.html"], "does not exist; create it"),
        (["pairs.tar", "--output=."], "is a folder"),
        (["pairs.tar", "--vocabulary=missing.gz"], "missing.gz"),
        (["~nobody-of-this-name/x.tar"], "no home folder for this user"),
    ],
)
def test_a_wrong_command_line_is_one_line(shard, arguments, said, capsys):
    assert check.main([*arguments, "--root", str(shard.parent)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_source_without_a_usable_record_is_an_error(tmp_path, capsys):
    write_tar(tmp_path / "bad.tar", {"0.jpg": b"nothing", "0.txt": b"a caption"})
    output = tmp_path / "sheet.html"
    assert check.main([str(tmp_path / "bad.tar"), "--output", str(output)]) == 2
    ended = capsys.readouterr()
    assert "1 x not an image" in ended.out and "none of 1 sampled records" in ended.err


def test_a_source_that_a_run_would_refuse_is_an_error(shard, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_SECONDS", 0.0)
    arguments = [str(shard), "--output", str(tmp_path / "sheet.html"), "--image-size=16"]
    assert check.main([*arguments, "--max-skip-rate=0.001"]) == 2
    assert "1 of 6 sampled records cannot be used, more than data.max_skip_rate=0.001" in capsys.readouterr().err
    assert check.main([*arguments, "--max-skip-rate=0.2"]) == 0


def test_tokens_are_counted_up_to_the_padding(shard, capsys, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_SECONDS", 0.0)
    model = MODELS / "siglip_form.model"
    output = str(shard.with_name("sheet.html"))
    assert check.main([str(shard), "--vocabulary", str(model), "--output", output, "--image-size=16"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tokens"))
    # "the caption of number 1": letter by letter at most, and the end.
    assert 5 <= int(re.search(r"median (\d+)", line)[1]) <= 26 and "0 of 5 are truncated" in line


VIEWS = """
from jaxclip.config import ViewConfig
from jaxclip.parsing import defaults
config.data.views = {"ssl": defaults(ViewConfig)}
config.data.views.ssl.augment.update({"gray": 1.0})
config.method.name = "slip"
config.method.update({"ssl_hidden": 8, "ssl_dim": 8})
"""


def sampled_from(path: pathlib.Path, count: int, epochs: int, **changes) -> recipe_sample.Sample:
    config = parse(Config, command_line.read(["check", f"--config={path}"]))
    return recipe_sample.sample(dataclasses.replace(config, **changes), count, epochs)


class Asking:
    """A method that takes questions, as far as its inputs go."""

    def inputs(self) -> inputs.Inputs:
        asked = {"question": inputs.Text(20, field="question"), "answers": inputs.Answers(12, count=2)}
        return {"image": inputs.Image(16), **asked, "label": inputs.Label()}

    def check(self, tokenizer: object) -> None:
        pass


def test_the_sheet_of_a_recipe_shows_the_questions_of_all_epochs_with_their_answers(tmp_path, monkeypatch):
    asked = {"questions": [["red or blue", ["red", "red", "red", "blue"]], ["how many", "two"]]}
    write_tar(tmp_path / "asked.tar", {"0.png": png("red"), "0.json": json.dumps(asked).encode()})
    monkeypatch.setattr(recipe_sample.methods, "from_config", lambda config: Asking())
    path = recipe(tmp_path, 'config.data.train = "asked.tar"\nconfig.data.captions = "all"')
    (record,) = sampled_from(path, count=1, epochs=2).records
    assert {text.text for text in record.texts["question"]} == {"red or blue", "how many"}
    found = {(text.text, text.name) for text in record.texts["answers"]}
    assert found == {("red", "weight 0.75"), ("blue", "weight 0.25"), ("two", "weight 1")}
    assert record.values == {"label": "-1"}


def test_what_a_recipe_feeds_is_what_its_run_draws(tmp_path):
    path = recipe(tmp_path, 'config.data.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.1)})')
    config = parse(Config, command_line.read(["check", f"--config={path}"]))
    run = build(config, tmp_path / "run", None)
    found = sampled_from(path, 64, 2)
    assert len(found.records) == 64
    for epoch in range(2):
        batch = run.loader.rows(64 * epoch, 64)
        _, ids, epochs = run.loader.places(64 * epoch, 64)
        assert set(epochs) == {epoch}
        for row, number in enumerate(ids):
            np.testing.assert_array_equal(batch["image"][row], found.records[number].training["image"][epoch].pixels)


def test_views_are_drawn_with_what_the_device_changes(tmp_path):
    found = sampled_from(recipe(tmp_path, VIEWS + "config.data.augment_on_device = True"), 3, 2)
    assert [*found.inputs] == ["image", "text", "first_view", "second_view"]
    for record in found.records:
        for view in (record.training["first_view"][0], record.evaluation["second_view"]):
            # Gray: the channels are equal, up to the rounding of one level.
            assert np.ptp(view.pixels.astype(int), axis=-1).max() <= 1
    # The first record is black and the last white, the one between them is not.
    assert np.ptp(found.records[1].training["image"][0].pixels.astype(int), axis=-1).max() > 100
    assert (
        found.records[1].training["first_view"][0].pixels != found.records[1].training["second_view"][0].pixels
    ).any()


def test_pixels_are_measured_as_the_model_takes_them(tmp_path):
    found = sampled_from(recipe(tmp_path), 2, 1)
    (crop,) = found.records[0].training["image"]
    kind = found.inputs["image"]
    expected = (crop.pixels.astype(np.float64) / 255 - kind.pixels.mean) / kind.pixels.std
    assert crop.mean == pytest.approx(expected.mean()) and crop.deviation == pytest.approx(expected.std())


def test_texts_are_shown_with_their_tokens(tmp_path):
    (record, *_) = sampled_from(recipe(tmp_path), 4, 2).records
    (text,) = record.texts["text"]
    assert text.text.strip() == "black to the left of" and text.length == 12  # as much as 12 tokens hold
    pieces = [piece for _, piece in text.pieces]
    assert (pieces[0], pieces[-1]) == ("start", "end")
    assert "".join(pieces[1:-1]) == "blacktotheleftof"


def checked(monkeypatch, *arguments: str) -> int:
    """The command's status; ml_collections reads the keys of a recipe from sys.argv."""
    monkeypatch.setattr("sys.argv", ["check", *arguments])
    return check.main()


def test_the_sheet_of_a_recipe_has_every_crop(tmp_path, capsys, monkeypatch):
    path, output = recipe(tmp_path, VIEWS), tmp_path / "sheet.html"
    arguments = [f"--config={path}", "--sample=3", "--epochs=2", f"--output={output}", "--config.seed=4"]
    assert checked(monkeypatch, *arguments) == 0
    page = Page(output.read_text())
    # The source, two training crops and the evaluation crop of three views.
    assert page.tags.count("img") == 3 * 3 * 4 and "script" not in page.tags
    assert page.texts.count("training, epoch 2") == 9
    printed = capsys.readouterr().out
    assert "first_view" in printed and "16 x 16, view ssl" in printed and "mean ± deviation" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.data.trian=x"], "config.data.trian is not a key; did you mean config.data.train?"),
        (["--config.data.train=missing.tar"], "does not exist"),
        (["--sample=0"], "must be at least 1"),
        (["--rooot=x"], "rooot"),
        (["--config.method.name=slip"], "config.data.views.ssl is missing"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, arguments, said, capsys, monkeypatch):
    assert checked(monkeypatch, f"--config={recipe(tmp_path)}", f"--output={tmp_path}/sheet.html", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
