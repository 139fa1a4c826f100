"""Real TFDS data sets, built in a temporary folder, as a source."""

import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources import open_source
from jaxclip.data.sources.tfds import Tfds, main
from jaxclip.errors import UserError


def shade(number: int) -> np.ndarray:
    return np.full((4, 6, 3), 40 * number, np.uint8)


def captions_of(number: int) -> tuple[str, str]:
    return (f"caption {number}", f"caf\u00e9 {number}")


# The features of each data set besides the image, and their values in one example. FEATURES below has their types.
EXAMPLES = {
    "like_coco": lambda n: {
        "captions": [{"id": n, "text": text} for text in captions_of(n)],
        "other": [{"area": n}] * n,
    },
    "list_of_captions": lambda n: {"captions": list(captions_of(n))},
    "one_caption": lambda n: {"caption": captions_of(n)[0], "text": "not this"},
    "one_title": lambda n: {"title": captions_of(n)[0], "label": -1 if n == 3 else n % 2},
    "classes": lambda n: {"label": -1 if n == 3 else n % 2},
    "blank": lambda n: {"caption": " " if n else "caption 0"},
    "number": lambda n: {"caption": n},
    "no_image": lambda n: {"image": "a.jpg", "caption": "a cat"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder of data sets with the splits train (4 examples) and val (2): as ArrayRecord, and one as TFRecord."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    features = {
        "like_coco": {
            "captions": kinds.Sequence({"id": np.int64, "text": kinds.Text()}),
            "other": kinds.Sequence({"area": np.int64}),
        },
        "list_of_captions": {"captions": kinds.Sequence(kinds.Text())},
        "one_caption": {"caption": kinds.Text(), "text": kinds.Text()},
        "one_title": {"title": kinds.Text(), "label": kinds.ClassLabel(names=["cat", "dog"])},
        "classes": {"label": kinds.ClassLabel(names=["cat", "dog"])},
        "blank": {"caption": kinds.Text()},
        "number": {"caption": np.int64},
        "no_image": {"image": kinds.Text(), "caption": kinds.Text()},
    }

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            stored = {"image": kinds.Image(encoding_format="png"), **features[self.name]}
            return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(stored))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(range(4)), "val": self._generate_examples(range(4, 6))}

        def _generate_examples(self, numbers):
            for number in numbers:
                yield number, {"image": shade(number), **EXAMPLES[self.name](number)}

    root = tmp_path_factory.mktemp("tfds")
    for name in EXAMPLES:
        type(name, (Tiny,), {"name": name}, skip_registration=True)(
            data_dir=str(root), file_format="array_record"
        ).download_and_prepare()
    type("stored_as_tfrecord", (Tiny,), {"name": "like_coco"}, skip_registration=True)(
        data_dir=str(root / "tfrecord"), file_format="tfrecord"
    ).download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def no_other_data(tmp_path, monkeypatch):
    """Nobody's own data sets are looked at."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))


def by_image(source) -> dict[int, Record | Skip]:
    """The records of a source by the number of their image (TFDS shuffles what it writes)."""
    records = {}
    for record in source.read(range(len(source))):
        assert isinstance(record, Record)
        pixels = np.asarray(Image.open(io.BytesIO(record.image)))
        records[int(pixels[0, 0, 0]) // 40] = record
        np.testing.assert_array_equal(pixels, shade(int(pixels[0, 0, 0]) // 40))
    return records


@pytest.mark.parametrize(
    ("name", "captions", "label"),
    [
        ("like_coco", captions_of, lambda n: None),
        ("list_of_captions", captions_of, lambda n: None),
        ("one_caption", lambda n: captions_of(n)[:1], lambda n: None),
        ("one_title", lambda n: captions_of(n)[:1], lambda n: (0, 1, 0, None)[n]),
    ],
)
def test_captions_are_found_by_the_known_names(folder, name, captions, label):
    records = by_image(Tfds(f"tfds:{name}", root=str(folder)))
    assert {n: (record.captions, record.label) for n, record in records.items()} == {
        n: (captions(n), label(n)) for n in range(4)
    }


def test_class_names_are_the_captions_where_there_are_no_others(folder):
    records = Tfds("tfds:classes", root=str(folder)).read(range(4))
    found = [(record.captions, record.label) for record in records if isinstance(record, Record)]
    assert sorted(found) == [(("cat",), 0), (("cat",), 0), (("dog",), 1)]
    assert [record.reason for record in records if isinstance(record, Skip)] == ["no caption"]  # of the label -1


def test_examples_without_a_caption_are_skipped(folder):
    records = Tfds("tfds:blank", root=str(folder)).read(range(4))
    assert sorted(getattr(record, "reason", "read") for record in records) == ["no caption"] * 3 + ["read"]


def test_records_are_read_in_the_order_asked_for(folder):
    source = Tfds("tfds:like_coco", root=str(folder))
    records = source.read(range(4))
    assert source.read(np.array([3, 1, 1])) == [records[3], records[1], records[1]]
    assert [record.key for record in records] == [f"tfds:like_coco[train]:{index}" for index in range(4)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("tfds:like_coco[val]", {4, 5}),
        ("tfds:like_coco:1.2.0", {0, 1, 2, 3}),
        ("tfds:like_coco:1.*.*[val]", {4, 5}),
        ("tfds:like_coco[train+val]", {0, 1, 2, 3, 4, 5}),
    ],
)
def test_versions_and_splits_can_be_named(folder, text, numbers):
    assert set(by_image(Tfds(text, root=str(folder)))) == numbers


def test_a_slice_is_a_part_of_its_split(folder):
    records = Tfds("tfds:like_coco", root=str(folder)).read(range(4))
    half = Tfds("tfds:like_coco[train[50%:]]", root=str(folder))
    assert [record.image for record in half.read(range(len(half)))] == [record.image for record in records[2:]]


def test_the_folder_is_the_root_or_that_of_tfds(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert len(open_source("tfds:like_coco")) == len(open_source("tfds:like_coco", root="/nowhere")) == 4
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(folder))
    (folder / "tensorflow_datasets").symlink_to(folder)
    assert len(open_source("tfds:like_coco")) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("tfds:", ["write tfds:NAME"], id="no-name"),
        pytest.param("tfds:huggingface:coco", ["write tfds:NAME"], id="another-registry"),
        pytest.param("tfds:no_such_set", ["no_such_set", "neither a data set of TFDS"], id="unknown"),
        pytest.param("tfds:like_coco:9.9.9", ["like_coco:9.9.9"], id="no-such-version"),
        pytest.param("tfds:like_coco[test]", ["no split test", "its splits are train, val"], id="no-such-split"),
        pytest.param("tfds:like_coco[train[x]]", ["no split train[x]"], id="no-such-slice"),
        pytest.param("tfds:number", ["caption, image", "captions/text"], id="caption-is-no-text"),
        pytest.param("tfds:no_image", ["features caption, image", "an image under image"], id="image-is-no-image"),
        pytest.param(
            "tfds:coco_captions",
            ["prepare it with", "tfds.builder('coco_captions', file_format='array_record')", "or choose other data"],
            id="not-prepared",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_naming_it(folder, text, said):
    with pytest.raises(UserError) as raised:
        Tfds(text, root=str(folder))
    message = str(raised.value)
    assert "\n" not in message
    for part in (text.partition("[")[0], *said):
        assert part in message


def test_a_missing_file_is_an_error_naming_it(folder, tmp_path):
    shutil.copytree(folder / "like_coco", tmp_path / "like_coco")
    gone = next(tmp_path.glob("like_coco/*/*train.array_record*"))
    gone.unlink()
    with pytest.raises(UserError, match=gone.name):
        Tfds("tfds:like_coco", root=str(tmp_path))
    assert len(Tfds("tfds:like_coco[val]", root=str(tmp_path))) == 2


def test_a_damaged_file_is_skipped_not_raised(folder, tmp_path):
    shutil.copytree(folder / "like_coco", tmp_path / "like_coco")
    path = next(tmp_path.glob("like_coco/*/*train.array_record*"))
    source = Tfds("tfds:like_coco", root=str(tmp_path))
    path.write_bytes(bytes(path.stat().st_size))
    assert source.read([2]) == [Skip("unreadable record", "tfds:like_coco[train]:2")]


def test_tfrecord_is_refused_with_the_command_that_converts_it(folder, tmp_path, capsys):
    shutil.copytree(folder / "tfrecord", tmp_path / "data")
    with pytest.raises(UserError) as raised:
        Tfds("tfds:like_coco", root=str(tmp_path / "data"))
    message = str(raised.value)
    assert "tfrecord" in message and "\n" not in message
    command = message.split("`")[1].split()
    assert command == ["python", "-m", "jaxclip.data.sources.tfds", str(tmp_path / "data/like_coco/1.2.0")]
    for _ in range(2):  # after an interruption it is run again
        assert main(command[-1:]) == 0
        assert capsys.readouterr().out == "wrote 6 records as ArrayRecord\n"
    converted = Tfds("tfds:like_coco", root=str(tmp_path / "data"))
    original = Tfds("tfds:like_coco", root=str(folder))
    assert converted.read(range(4)) == original.read(range(4))


def test_the_command_says_in_one_line_what_it_cannot_convert(folder, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} does not contain a data set prepared by TFDS; give the folder of its dataset_info.json\n"
    )
    assert main([str(folder / "like_coco" / "1.2.0")]) == 2
    assert "prepared as array_record; only TFRecord can be converted" in capsys.readouterr().err


def test_reading_does_not_import_tensorflow(folder):
    code = (
        "import sys; from jaxclip.data.sources.tfds import Tfds; "
        f"Tfds('tfds:like_coco', root={str(folder)!r}).read([0]); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
