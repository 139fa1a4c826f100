"""jaxclip.load on a run's workdir, without its recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import pathlib
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import environment, png, recipe, run
from flax import nnx
from PIL import Image

import jaxclip
from jaxclip import inputs, methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.model import Model

WIDTH, SIZE, CONTEXT = 16, 16, 12


@contextlib.contextmanager
def capture_logs() -> Iterator[list[str]]:
    """The log messages of jax."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("jax").addHandler(handler)
    yield said
    logging.getLogger("jax").removeHandler(handler)


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
def test_any_number_of_images_gives_unit_embeddings(model, count):
    embeddings = model.encode_image([np.full((20, 30, 3), 40 * number, np.uint8) for number in range(count)])
    assert embeddings.shape == (count, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.ones(count), rtol=1e-6)


def test_a_path_an_image_and_an_array_are_the_same_image(model, tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    image = Image.open(tmp_path / "a.png")
    found = model.encode_image([tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)])
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


def test_one_text_or_image_alone_is_a_list_of_one(model, tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    np.testing.assert_array_equal(model.encode_text("red"), model.encode_text(["red"]))
    expected = model.encode_image([tmp_path / "a.png"])
    image = Image.open(tmp_path / "a.png")
    for alone in (tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)):
        np.testing.assert_array_equal(model.encode_image(alone), expected)
    np.testing.assert_array_equal(model.tokenize("red"), model.tokenize(["red"]))


def test_an_array_of_images_is_images(model):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    np.testing.assert_array_equal(model.encode_image(images), model.encode_image(list(images)))
    assert model.encode_image(images[:0]).shape == (0, WIDTH)


def test_any_number_of_images_and_texts_compiles_once(model):
    model.encode_image([np.zeros((20, 30, 3), np.uint8)])
    model.encode_text(["red"])
    with jax.log_compiles(), capture_logs() as said:
        for count in (0, 1, 3, 4, 9):
            model.encode_image(np.zeros((count, 20, 30, 3), np.uint8))
            model.encode_text(["red"] * count)
        jax.jit(lambda number: number * 3)(1.0)
    compiled = [line for line in said if "Compiling" in line]
    assert compiled and all("lambda" in line for line in compiled), "only what is not the model's"


def test_an_embedding_does_not_depend_on_what_is_embedded_with_it(model):
    texts = [f"text {number}" for number in range(9)]
    together = model.encode_text(texts)
    np.testing.assert_allclose(np.concatenate([model.encode_text(text) for text in texts]), together, atol=1e-6)


def test_similarity_is_scaled_cosines(model):
    images = [np.full((20, 20, 3), 60 * number, np.uint8) for number in range(3)]
    image, text = model.encode_image(images), model.encode_text(["red", "green"])
    expected = model.logit_scale * image.astype(float) @ text.T.astype(float)
    for given in ((images, ["red", "green"]), (image, text), (images, text), (image.astype(float), text)):
        found = model.similarity(*given)
        assert found.shape == (3, 2) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.logit_bias == 0


def test_classify_gives_probabilities_by_the_mean_of_the_templates(model):
    images, labels = [np.full((20, 20, 3), 60 * number, np.uint8) for number in range(3)], ["red", "green", "blue"]
    templates = ["{c}", "a {c} thing"]
    found = model.classify(images, labels, templates)
    means = np.stack([model.encode_text([t.replace("{c}", label) for t in templates]).mean(0) for label in labels])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    logits = model.logit_scale * model.encode_image(images) @ means.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("labels", "templates"), [([], ["{c}"]), (["red"], []), (["red"], ["a thing"])])
def test_classify_without_labels_or_a_place_for_them_is_an_error(model, labels, templates):
    with pytest.raises(UserError, match="classify: "):
        model.classify([np.zeros((20, 20, 3), np.uint8)], labels, templates)


def test_other_sizes_have_their_positions_resized(workdir):
    larger = jaxclip.load(workdir, image_size=32, context_length=20, batch_size=4)
    assert larger.preprocess(Image.new("RGB", (40, 20))).shape == (32, 32, 3)
    assert larger.tokenize("red").shape == (1, 20)
    assert larger.encode_image(Image.new("RGB", (40, 20))).shape == (1, WIDTH)
    assert np.isfinite(larger.encode_text("red")).all()


def test_bfloat16_halves_the_parameters_and_nearly_keeps_the_embeddings(workdir, model):
    small = jaxclip.load(workdir, dtype="bfloat16", batch_size=4)
    leaves = jax.tree.leaves(small.evaluation_parts()[1])
    assert {leaf.dtype.name for leaf in leaves if leaf.ndim} == {"bfloat16"}
    cosines = (small.encode_text(["red", "green"]) * model.encode_text(["red", "green"])).sum(axis=1)
    assert (cosines > 0.999).all()


def test_a_model_has_a_readable_repr(model):
    assert re.fullmatch(
        r"<jaxclip model: clip, images of 16 pixels, texts of 12 tokens, \d\d,\d\d\d parameters>", repr(model)
    )


class OnlyFeatures(nnx.Module):
    """A model of images alone that compares nothing."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones((3, 5)))

    def features(self, images, ctx):
        return images.astype(ctx.dtype).mean(axis=(1, 2)) @ self.weight[...]


@dataclasses.dataclass(frozen=True)
class ImageMethod(methods.Method):
    """A method whose model has features and nothing else."""

    def inputs(self):
        return {"image": inputs.Image(SIZE)}

    def init(self, rngs):
        return OnlyFeatures()


@pytest.fixture
def image_model() -> Model:
    """A model of a method without texts."""
    params, stats = methods.init_variables(ImageMethod(), jax.random.key(0))
    mesh = sharding.create(MeshConfig(), jax.devices()[:2])
    return Model(None, params, stats, Encoder(ImageMethod(), mesh, "float32", None, batch_size=4))


def test_features_are_those_of_the_images(image_model):
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    found = image_model.features(images)
    assert found.shape == (5, 5) and found.dtype == np.float32
    expected = images.mean(axis=(1, 2)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (5, 5)), rtol=1e-6)
    assert image_model.features(images[0]).shape == (1, 5)


@pytest.mark.parametrize(
    ("ask", "lacks"),
    [
        (lambda model: model.encode_image(np.zeros((4, 4, 3), np.uint8)), "encode_image needs encode_image"),
        (lambda model: model.encode_text("red"), "encode_text needs encode_text"),
        (lambda model: model.similarity("a.png", "red"), "similarity needs encode_image and encode_text and scale"),
        (lambda model: model.classify("a.png", ["red"]), "classify needs encode_image and encode_text and scale"),
    ],
)
def test_what_a_model_cannot_do_is_one_line_that_names_the_method(image_model, ask, lacks):
    with pytest.raises(UserError) as raised:
        ask(image_model)
    said = str(raised.value)
    assert said.startswith(lacks) and "which method test_model does not have (it has features)" in said
    assert "\n" not in said


def test_a_model_without_texts_has_no_tokens_and_no_scale(image_model):
    assert image_model.has("features") and not image_model.has("encode_image")
    assert image_model.logit_scale is None and image_model.logit_bias is None
    assert repr(image_model) == "<jaxclip model: test_model, images of 16 pixels, 15 parameters>"
    with pytest.raises(UserError, match="method test_model has no texts"):
        image_model.tokenize("red")


def encoded(mode: str, kind: str = "PNG", orientation: int = 1) -> bytes:
    """A file of an image that is not plain RGB."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[..., :3]).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    "file", [encoded("RGBA"), encoded("I;16"), encoded("RGB", "JPEG", 6), encoded("P"), encoded("CMYK", "JPEG")]
)
def test_an_image_is_seen_alike_as_a_file_as_bytes_and_opened(model, tmp_path, file):
    (tmp_path / "a").write_bytes(file)
    expected = model.preprocess(tmp_path / "a")
    for image in (file, Image.open(io.BytesIO(file)), Image.open(tmp_path / "a")):
        np.testing.assert_array_equal(model.preprocess(image), expected)


def test_pixels_may_be_of_any_library(model):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    np.testing.assert_array_equal(model.encode_image(jax.numpy.asarray(pixels)), model.encode_image(pixels))
    np.testing.assert_array_equal(model.encode_image(jax.numpy.asarray(pixels[0])), model.encode_image(pixels[0]))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((20, 30), np.uint8), "uint8 [20, 30]"),
        (np.zeros((20, 30, 4), np.uint8), "uint8 [20, 30, 4]"),
        (np.zeros((20, 30, 3), np.float32), "float32 [20, 30, 3]"),
        (np.zeros((3, 20, 30), np.uint8), "uint8 [3, 20, 30]"),
        (None, "a NoneType cannot be embedded: give a path, a PIL image"),
        (b"<html>", "not an image"),
        (Image.new("F", (4, 4)), "signed or 32-bit pixels"),
        ("nowhere.jpg", "nowhere.jpg cannot be embedded: No such file"),
        ("gs://bucket/a.jpg", "image=gs://bucket/a.jpg must be on a local disk; mount the bucket, or copy from there"),
        ("~no-such-user/a.jpg", "image=~no-such-user/a.jpg: there is no such user's home folder"),
    ],
)
def test_other_arguments_than_images_are_a_one_line_error_with_the_accepted_ones(model, image, said):
    with pytest.raises(UserError) as raised:
        model.encode_image([image])
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_no_image_is_an_error_that_names_it(model, tmp_path):
    (tmp_path / "bad.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"bad\.jpg cannot be embedded: not an image"):
        model.encode_image([tmp_path / "bad.jpg"])


@pytest.mark.parametrize(
    "wrong", [{"dtype": "float16"}, {"batch_size": 0}, {"image_size": 64.0}, {"context_length": "a"}]
)
def test_an_option_that_cannot_be_is_an_error_that_names_it(workdir, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        jaxclip.load(workdir, **wrong)


def test_a_folder_that_only_looks_like_a_checkpoint_is_none(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="has neither checkpoints/"):
        jaxclip.load(tmp_path)
    (tmp_path / "state").mkdir()
    with pytest.raises(UserError, match=r"/test_a_folder\S* is damaged: .*; copy all of it again$"):
        jaxclip.load(tmp_path)


def test_a_folder_without_a_checkpoint_is_an_error_that_names_it(tmp_path):
    with pytest.raises(
        UserError, match=f"{tmp_path} has neither checkpoints/ nor open_clip_config.json nor config.json"
    ):
        jaxclip.load(tmp_path)
