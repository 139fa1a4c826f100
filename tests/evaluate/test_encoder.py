"""Evaluation of a model's functions by name, for any number of rows, over all devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import recipe
from flax import nnx
from look_up import mesh_of

from jaxclip import methods
from jaxclip.data import tokenizers
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Text


class Tiny(nnx.Module):
    """Functions of images alone, each row from its own; how often they are traced is counted."""

    traced: dict[str, int] = {}

    def __init__(self):
        self.weight = nnx.Param(jnp.arange(3.0))

    def features(self, images, ctx):
        self.traced["features"] = self.traced.get("features", 0) + 1
        return images.astype(ctx.dtype).mean(axis=(1, 2)) + self.weight

    def several(self, images, numbers, ctx):
        return {"sum": images.astype(jnp.int32).sum(axis=(1, 2, 3)) + numbers, "first": images[:, 0, 0]}


@dataclasses.dataclass(frozen=True)
class ImageMethod(methods.Method):
    """A method without texts."""

    def inputs(self):
        return {"image": Image(4)}

    def init(self, rngs):
        return Tiny()


@dataclasses.dataclass(frozen=True)
class TextMethod(methods.Method):
    """A method without images."""

    def inputs(self):
        return {"text": Text(6)}

    def init(self, rngs):
        return nnx.Module()


def encoder_of(devices: int, batch_size: int = 8) -> tuple[Encoder, dict]:
    variables, _ = methods.init_variables(ImageMethod(), jax.random.key(0))
    return Encoder(ImageMethod(), mesh_of(devices), "float32", None, batch_size), variables


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)


def test_a_model_has_the_functions_that_its_class_defines():
    encoder, _ = encoder_of(1)
    assert encoder.has() and encoder.has("features") and encoder.has("several", "features")
    # Neither functions of every module, nor attributes that are not functions.
    for name in ("encode_image", "weight", "traced", "train", "eval", "__init__"):
        assert not encoder.has(name), name
    assert not encoder.has("features", "encode_text")


@pytest.mark.parametrize("devices", (1, 8))
@pytest.mark.parametrize("count", (0, 1, 8, 19))
def test_any_number_of_rows_gives_as_many(devices, count):
    encoder, variables = encoder_of(devices)
    rows = images(count)
    found = encoder("features", variables, rows)
    np.testing.assert_allclose(found, rows.mean(axis=(1, 2)) + np.arange(3.0), rtol=1e-6)
    numbers = np.arange(count, dtype=np.int32)
    both = encoder("several", variables, rows, numbers)
    np.testing.assert_array_equal(both["sum"], rows.sum(axis=(1, 2, 3), dtype=np.int32) + numbers)
    np.testing.assert_array_equal(both["first"], rows[:, 0, 0])


def test_a_function_is_compiled_once():
    encoder, variables = encoder_of(1)
    Tiny.traced.clear()
    for count in (3, 8, 20):
        encoder("features", variables, images(count))
    assert Tiny.traced == {"features": 1}


def test_a_source_is_embedded_by_any_function_of_images(tmp_path):
    recipe(tmp_path)
    source = open_source("pairs.tar", root=str(tmp_path))
    encoder, variables = encoder_of(8)
    embedded = encoder.source(variables, source, SkipLog(), range(5, 25), function="features")
    assert embedded.outputs.shape == (20, 3) and embedded.outputs.dtype == np.float32
    assert embedded.ids == list(range(5, 25))
    assert embedded.captions == [list(record.captions) for record in source.read(list(range(5, 25)))]


def test_what_a_method_takes_no_input_for_is_one_line():
    encoder, variables = encoder_of(1)
    with pytest.raises(UserError, match="has no texts, and so no tokenizer$"):
        encoder.texts(variables, ["red"])
    tokenizer = tokenizers.train(["a dog"], 520)
    with pytest.raises(UserError, match="has no images$"):
        Encoder(TextMethod(), mesh_of(1), "float32", tokenizer).source({}, None, SkipLog())
