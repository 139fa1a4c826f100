"""Files with checksums: what is written, and how damage is noticed."""

import concurrent.futures
import io
import os
import pathlib

import numpy as np
import pytest

from jaxclip.data.index import checked
from jaxclip.data.index.checked import BLOCK, CheckedFile, Writer, open_checked
from jaxclip.data.index.keep import keep
from jaxclip.errors import UserError


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


def written(place: pathlib.Path, content: bytes) -> pathlib.Path:
    assert keep(place, lambda file: file.write(content))
    return place


def flip(place: pathlib.Path, offset: int, bit: int = 0) -> None:
    with place.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.fixture
def verified(monkeypatch) -> list[int]:
    """The blocks that are verified."""
    blocks: list[int] = []
    verify = CheckedFile._verify
    monkeypatch.setattr(
        CheckedFile, "_verify", lambda file, first, end: blocks.extend(range(first, end)) or verify(file, first, end)
    )
    return blocks


@pytest.fixture
def large(monkeypatch) -> None:
    """Every file is a large one."""
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", -1)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_the_content_is_what_was_written(tmp_path, size):
    content = random_bytes(size)
    file = CheckedFile(written(tmp_path / "x", content))
    assert file.size == size and file.read(0, size) == content
    assert file.read(size // 3, size // 2) == content[size // 3 :][: size // 2]
    assert (tmp_path / "x").read_bytes().startswith(content)


def test_a_system_that_returns_few_bytes_at_once_damages_nothing(tmp_path, monkeypatch):
    content = random_bytes(BLOCK + 100)
    place = written(tmp_path / "x", content)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, start: pread(descriptor, min(size, 1000), start))
    assert CheckedFile(place).read(0, BLOCK + 100) == content


def test_pieces_in_any_order_with_holes_are_the_same_file_as_one_piece(tmp_path):
    size = 9 * BLOCK + 100
    content = bytearray(random_bytes(size))
    content[3 * BLOCK - 50 : 6 * BLOCK + 50] = bytes(3 * BLOCK + 100)  # two blocks of zeros and two halves
    cuts = np.unique(np.random.default_rng(1).integers(0, size, 40)).tolist()
    pieces = list(zip([0, *cuts], [*cuts, size], strict=True))

    def fill(file: Writer) -> None:
        for place in np.random.default_rng(2).permutation(len(pieces)):
            start, end = pieces[place]
            if any(content[start:end]):
                file.seek(start)
                file.write(content[start:end])
                assert file.tell() == end

    assert any(not any(content[start:end]) for start, end in pieces)
    whole = written(tmp_path / "x", bytes(content)).read_bytes()
    assert keep(tmp_path / "x", fill) and (tmp_path / "x").read_bytes() == whole


def test_the_writer_holds_only_incomplete_blocks():
    writer = Writer(io.BytesIO())
    for start in range(0, 100 * BLOCK, 1000):  # two columns side by side
        for place in (start, start + 500 * BLOCK):
            writer.seek(place)
            writer.write(bytes(1000))
            assert len(writer._begun) <= 2


def test_every_flipped_bit_of_a_small_file_is_noticed_when_it_is_opened(tmp_path):
    place = written(tmp_path / "x", random_bytes(150))
    for offset in range(place.stat().st_size):
        for bit in range(8):
            flip(place, offset, bit)
            with pytest.raises(ValueError):
                CheckedFile(place)
            flip(place, offset, bit)
    assert CheckedFile(place).size == 150


@pytest.mark.parametrize("size", [150, 3 * BLOCK])
@pytest.mark.usefixtures("large")
def test_a_file_of_another_length_or_name_is_noticed_even_if_it_is_large(tmp_path, size):
    place = written(tmp_path / "x", random_bytes(size))
    good = place.read_bytes()
    for bad in [b"", good[:-1], good[1:], good[: len(good) // 2], good + b"\0", good * 2, good[:size]]:
        place.write_bytes(bad)
        with pytest.raises(ValueError):
            CheckedFile(place)
    place.write_bytes(good)
    assert CheckedFile(place).read(0, size) == good[:size]
    with pytest.raises(ValueError):
        CheckedFile(place.rename(tmp_path / "y"))


def refuse(content):
    raise ValueError("another format")


@pytest.mark.parametrize(
    ("threshold", "flipped", "parse"),
    [
        pytest.param(BLOCK, True, lambda content: content, id="small"),
        pytest.param(-1, True, lambda content: content.read(0, 1), id="beginning-of-a-large-one"),
        pytest.param(BLOCK, False, refuse, id="other-format"),
    ],
)
def test_an_index_that_cannot_be_used_is_removed_and_reported_in_a_line(
    tmp_path, caplog, monkeypatch, threshold, flipped, parse
):
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", threshold)
    place = written(tmp_path / "x", random_bytes(150))
    assert open_checked(tmp_path / "y", parse) is None and not caplog.messages
    if flipped:
        flip(place, 0)
    assert open_checked(place, parse) is None and not place.exists()
    assert caplog.messages == [f"the index {place} is damaged or of another version: it is made anew"]


def test_a_file_is_verified_whole_up_to_a_size_and_once(tmp_path, monkeypatch, verified):
    place = written(tmp_path / "x", random_bytes(3 * BLOCK))
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", 3 * BLOCK)
    file = CheckedFile(place)
    assert file.read(0, 3 * BLOCK) == file.read(0, 3 * BLOCK) and verified == [0, 1, 2]
    verified.clear()
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", 3 * BLOCK - 1)
    file = CheckedFile(place)
    assert not verified
    for start, size in [(5, 10), (BLOCK - 5, 5), (BLOCK, 0), (2 * BLOCK - 1, 2), (0, 3 * BLOCK)]:
        assert len(file.read(start, size)) == size
    assert verified == [0, 1, 2]
    verified.clear()
    CheckedFile(place, whole=True)
    assert verified == [0, 1, 2]


@pytest.mark.usefixtures("large")
def test_threads_read_right_bytes_and_verify_no_block_again(tmp_path, verified):
    size = 200 * BLOCK + 10
    content = random_bytes(size)
    file = CheckedFile(written(tmp_path / "x", content))
    starts = np.random.default_rng(1).integers(0, size - 100, 2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for again in (False, True):
            for start, data in zip(starts, pool.map(lambda start: file.read(start, 100), starts), strict=True):
                assert data == content[start : start + 100]
            if not again:
                # Threads that meet at a block may each verify it.
                assert 150 < len(set(verified)) <= 201 and len(verified) < 400
                verified.clear()
    assert not verified


@pytest.mark.usefixtures("large")
def test_a_damaged_block_of_a_large_file_is_one_line_and_the_file_is_removed(tmp_path):
    content = random_bytes(4 * BLOCK)
    place = written(tmp_path / "x", content)
    flip(place, 2 * BLOCK + 7)
    file = CheckedFile(place)
    assert file.read(0, 2 * BLOCK) + file.read(3 * BLOCK, BLOCK) == content[: 2 * BLOCK] + content[3 * BLOCK :]
    for start, size in [(2 * BLOCK, 1), (2 * BLOCK - 1, 2), (3 * BLOCK - 1, 2), (0, 4 * BLOCK)]:
        with pytest.raises(UserError, match=rf"^the index {place} is damaged: start again, it is made anew$"):
            file.read(start, size)
        assert not place.exists()


@pytest.mark.usefixtures("large")
def test_a_file_that_has_replaced_a_damaged_one_stays(tmp_path):
    place = written(tmp_path / "x", random_bytes(BLOCK))
    flip(place, 7)
    file = CheckedFile(place)
    written(place, b"another process has made it anew")
    with pytest.raises(UserError, match="is damaged: start again"):
        file.read(0, 1)
    assert CheckedFile(place).read(0, 7) == b"another"


@pytest.mark.usefixtures("large")
def test_a_damaged_file_that_cannot_be_removed_says_so(tmp_path, monkeypatch):
    def forbid(path):
        raise PermissionError(13, "Permission denied")

    place = written(tmp_path / "x", random_bytes(BLOCK))
    flip(place, 7)
    monkeypatch.setattr(pathlib.Path, "unlink", forbid)
    with pytest.raises(UserError, match=r"it cannot be removed \(Permission denied\); remove it and start again"):
        CheckedFile(place).read(0, 1)


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_that_is_cut_or_cannot_be_read_while_it_is_in_use_ends_with_a_line(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(checked, "VERIFIED_WHOLE", BLOCK if whole else -1)
    place = written(tmp_path / "x", random_bytes(BLOCK))

    def fail(descriptor, size, start):
        raise OSError(5, "Input/output error")

    file = CheckedFile(place)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be read: Input/output error; remove"):
        patch.setattr(os, "pread", fail)
        file.read(0, 1)
    assert place.exists()
    os.truncate(place, 100)
    with pytest.raises(UserError, match="is damaged: start again, it is made anew"):
        file.read(90, 20)
    assert not place.exists()
