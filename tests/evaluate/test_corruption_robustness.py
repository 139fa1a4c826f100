"""Accuracy on corrupted images compared with one image at a time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import environment, recipe
from look_up import NoRecords, mesh_of
from paths import TESTS
from robustness_process import OPTIONS, SIZE, block_means, class_means, evaluated

from jaxclip import sharding
from jaxclip.data.loader import examples
from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.errors import UserError
from jaxclip.evaluate.corruption_robustness import Evaluator
from jaxclip.evaluate.corruptions import KINDS, corrupted
from jaxclip.inputs import Image


@pytest.fixture(scope="module")
def alone():
    return evaluated(jax.devices()[:1])


def accuracy(images: list[np.ndarray], labels: list[int]) -> float:
    texts = class_means()
    texts /= np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-12)
    return float(np.mean((block_means(np.stack(images)) @ texts.T).argmax(axis=1) == labels))


def one(image: np.ndarray, number: int, kind: str, strength: int) -> np.ndarray:
    """A single image corrupted."""
    mesh = mesh_of(1)
    batch = [jax.device_put(array, sharding.batch_sharding(mesh)) for array in (image[None], np.int32([number]))]
    return np.asarray(corrupted(mesh, *batch, kind, strength))[0]


def test_every_cell_is_the_accuracy_over_images_that_are_corrupted_one_by_one(alone):
    source = open_source("shapes:seen")
    ids = [number * len(source) // 45 for number in range(45)]
    assert len(set(ids)) == 45
    pixels = Image(SIZE).pixels
    images, labels = [], []
    for _, image, record in examples(source, ids, SIZE, pixels, SkipLog()):
        images.append(image)
        labels.append(record.label)
    cells = {}
    for kind in OPTIONS["kinds"]:
        for strength in OPTIONS["strengths"]:
            found = [one(image, number, kind, strength) for number, image in zip(ids, images, strict=True)]
            cells[kind, strength] = accuracy(found, labels)
    by_strength = alone.further["acc1_by_strength"]
    assert {(kind, int(name)): value for kind, row in by_strength.items() for name, value in row.items()} == cells
    assert len(set(cells.values())) > 2
    clean, mean = accuracy(images, labels), np.mean(list(cells.values()))
    assert alone.metrics == pytest.approx(
        {"acc1_corrupted": mean, "acc1_clean": clean, "relative_robustness": mean / clean}
        | {f"acc1_{kind}": (cells[kind, 1] + cells[kind, 4]) / 2 for kind in OPTIONS["kinds"]}
    )
    assert alone.further["images"] == 45


def test_eight_devices_count_as_one_does(alone):
    together = evaluated(jax.devices()[:8])
    assert together.metrics == alone.metrics and together.further == alone.further
    assert together.tables == alone.tables
    for found, expected in zip(together.examples, alone.examples, strict=True):
        np.testing.assert_array_equal(found.image, expected.image)


def test_two_processes_count_as_one_does(tmp_path, alone):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    outputs = [tmp_path / "0.json", tmp_path / "1.json"]
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "helpers" / "robustness_process.py", output],
            env=environment(joined | {"JAX_PROCESS_ID": str(number)}, devices=2),
        )
        for number, output in enumerate(outputs)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for output in outputs:
        found = json.loads(output.read_text())
        assert found["metrics"] == alone.metrics and found["cells"] == alone.further["acc1_by_strength"]
        assert found["shown"] == [example.image.tolist() for example in alone.examples]


def test_the_tables_have_a_row_for_each_kind_and_the_examples_one_image(alone):
    whole, by_kind = alone.tables
    assert whole.columns == ("corrupted", "clean", "relative")
    assert by_kind.columns == ("mean", "clean", "strength 1", "strength 4")
    assert list(by_kind.rows) == ["gaussian noise", "contrast", "jpeg compression"]
    mean, clean, *_ = by_kind.rows["contrast"]
    assert (mean, clean) == (f"{alone.metrics['acc1_contrast']:.1%}", f"{alone.metrics['acc1_clean']:.1%}")
    assert [example.text for example in alone.examples] == [
        "clean",
        "gaussian noise 4",
        "contrast 4",
        "jpeg compression 4",
    ]
    clean, *versions = (example.image for example in alone.examples)
    assert all(version.shape == clean.shape and (version != clean).any() for version in versions)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kinds": ("rain",)}, "kinds: 'rain' is not a corruption; they are gaussian_noise, shot_noise, "),
        ({"kinds": ()}, "kinds=() must be at least one, and none twice"),
        ({"strengths": (0,)}, "strengths: 0 is not from 1 to 5"),
        ({"strengths": (2, 2)}, r"strengths=\(2, 2\) must be at least one, and none twice"),
        ({"images": -1}, "images=-1 must be at least 1, or 0 for all"),
        ({"templates": ("a",)}, "templates: 'a' has no {c}"),
    ],
)
def test_a_wrong_key_is_named(keys, said):
    with pytest.raises(UserError, match=said.replace("()", r"\(\)")):
        Evaluator("data", **keys)


def test_all_kinds_and_strengths_are_the_default():
    assert len(KINDS) == 15
    assert (Evaluator("data").kinds, Evaluator("data").strengths) == (KINDS, (1, 2, 3, 4, 5))


def test_images_need_a_label_and_tags_are_none():
    evaluator = Evaluator("data")
    prompts = evaluator.prepare(NoRecords("cat", "dog"), "")
    assert evaluator.lacks(Record(b"", (), "x", tags=(0,)), prompts) == "no class label"
    assert evaluator.lacks(Record(b"", (), "x", label=1), prompts) == ""


def test_data_without_a_label_is_refused(tmp_path):
    recipe(tmp_path)  # with pairs.tar
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="no image has a class label"):
        evaluated(jax.devices()[:1], data=str(tmp_path / "pairs.tar"), classes=str(tmp_path / "classes.txt"))
