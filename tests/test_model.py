"""jaxclip.load: the model in a run's workdir, used without its recipe."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from commands import environment, png, recipe, run
from PIL import Image

import jaxclip
from jaxclip.errors import UserError
from jaxclip.model import Model

WIDTH, SIZE, CONTEXT = 16, 16, 12


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    result = run([f"--config={recipe(folder)}", f"--workdir={folder}/run"], environment())
    assert result.status == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def model(workdir: pathlib.Path) -> Model:
    return jaxclip.load(workdir, batch_size=4)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_any_number_of_texts_gives_unit_embeddings(model, count):
    embeddings = model.encode_text([f"text {number}" for number in range(count)])
    assert embeddings.shape == (count, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.ones(count), rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_number_of_pictures_gives_unit_embeddings(model, count):
    embeddings = model.encode_image([np.full((20, 30, 3), 40 * number, np.uint8) for number in range(count)])
    assert embeddings.shape == (count, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.ones(count), rtol=1e-6)


def test_a_path_a_picture_and_an_array_are_the_same_picture(model, tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    picture = Image.open(tmp_path / "a.png")
    found = model.encode_image([tmp_path / "a.png", str(tmp_path / "a.png"), picture, np.asarray(picture)])
    np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), rtol=0, atol=1e-6)


def test_what_goes_into_the_towers(model):
    assert model.preprocess(Image.new("L", (40, 20))).shape == (SIZE, SIZE, 3)
    tokens = model.tokenize(["red to the left of blue", ""])
    assert tokens.shape == (2, CONTEXT) and tokens.dtype == np.int32
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=0.1)


def test_one_checkpoints_folder_is_that_steps_model(workdir, model):
    folder = workdir / "checkpoints"
    last, first = (jaxclip.load(folder / step, batch_size=4).encode_text(["red"]) for step in ("4", "2"))
    np.testing.assert_array_equal(last, model.encode_text(["red"]))
    assert np.abs(last - first).max() > 1e-6


def test_a_single_text_or_path_in_place_of_a_list_is_an_error(model):
    with pytest.raises(TypeError, match=r"give a list of texts, not one: \['a cat'\]"):
        model.encode_text("a cat")
    with pytest.raises(TypeError, match="give a list of pictures"):
        model.encode_image("a.png")


def test_a_file_that_is_no_picture_is_an_error_that_names_it(model, tmp_path):
    (tmp_path / "bad.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"bad\.jpg: not a picture"):
        model.encode_image([tmp_path / "bad.jpg"])


def test_a_folder_without_a_checkpoint_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no checkpoint here"):
        jaxclip.load(tmp_path)
