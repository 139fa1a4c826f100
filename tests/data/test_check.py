"""What is found out about a source before training, and the command that shows it."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import png, write_tar
from paths import MODELS

from jaxclip.data import findings
from jaxclip.data.check import __main__ as check
from jaxclip.data.check import contact_sheet
from jaxclip.data.record import Record, Skip
from jaxclip.errors import UserError


@dataclasses.dataclass(frozen=True)
class Some:
    """A source of which every `period`-th record is bad."""

    length: int
    period: int
    class_names: tuple[str, ...] = ()
    chunk_ends: None = None

    def __len__(self) -> int:
        return self.length

    def read(self, ids) -> list[Record | Skip]:
        return [self._record(index) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        key = f"{index % 4}.tar:{index}"
        if self.period and index % self.period == 0:
            return Skip("unreadable shard", key) if index % 2 else Record(b"<html>", ("a page",), key)
        return Record(np.full((5, 9, 3), 7, np.uint8), (f"picture {index}", "another"), key)


def test_a_sample_is_spread_over_the_whole_source():
    found = findings.look_at(Some(1000, 0), 10)
    assert found.records == 1000 and found.looked_at == 10
    assert [example.key for example in found.examples] == [f"{i % 4}.tar:{i}" for i in range(0, 1000, 111)]
    assert found.examples[3].size == (9, 5) and found.examples[3].captions == ("picture 333", "another")


def test_what_cannot_be_used_is_told_by_reason_and_by_shard():
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
        members[f"{index}.png"] = png("red") if index else b"<html>no picture</html>"
        members[f"{index}.txt"] = f"the caption of number {index}".encode()
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
    assert "images/s to 16 x 16 pixels" in values["speed"]
    assert output.read_text().count("<img") == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
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
