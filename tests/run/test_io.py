"""Atomic file replacement, and foreign text made printable."""

from __future__ import annotations

import pathlib

import pytest

from jaxclip.data.index.checked import CheckedFile
from jaxclip.data.index.keep import keep
from jaxclip.io import atomic_write, first_few, printable


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["config.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["config.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "index"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"first")
        second.write(b"second")
    # The outer block ends last.
    assert path.read_bytes() == b"first" and names(tmp_path) == ["index"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    assert keep(tmp_path / "new" / "index", lambda file: file.write(b"rows"))
    assert CheckedFile(tmp_path / "new" / "index").read(0, 4) == b"rows"
    (tmp_path / "file").touch()
    assert not keep(tmp_path / "file" / "index", lambda file: file.write(b"rows"))

    def full(file):
        raise OSError(28, "No space left on device")

    assert not keep(tmp_path / "new" / "other", full)
    assert names(tmp_path / "new") == ["index"]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("a red circle", None, "a red circle"),
        ("\x1b[31mred\n", None, "�[31mred�"),
        (b"caf\xc3\xa9 \xff", None, "café �"),
        ("right\u202eto left", None, "right�to left"),
        ("half a pair \ud800", None, "half a pair �"),
        ("x" * 100, 10, "xxxxxxxxxx..."),
        ("x" * 10, 10, "xxxxxxxxxx"),
        ("", 3, ""),
    ],
)
def test_foreign_text_is_made_printable(text, limit, expected):
    assert printable(text, limit) == expected


def test_of_many_names_the_first_are_listed():
    assert first_few(["a", "b\n"]) == "a, b�"
    assert first_few([*"abcdefg"], 2) == "a, b and 5 more"
