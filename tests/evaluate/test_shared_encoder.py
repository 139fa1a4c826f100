"""Sharing of encoded images among evaluations, in memory and on disk."""

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
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.evaluate.shared import SharedEncoder
from jaxclip.inputs import Image

BOTH = ("encode_image", "features")


class Tiny(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.arange(3.0))

    def features(self, images, ctx):
        return images.astype(jnp.float32).mean(axis=(1, 2)) + self.weight

    def encode_image(self, images, ctx):
        return self.features(images, ctx)[:, :2].astype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    size: int = 4

    def inputs(self):
        return {"image": Image(self.size)}

    def init(self, rngs):
        return Tiny()


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images of each batch go through the model."""
    counts: list[int] = []
    batches = Encoder.batches

    def counting(self, source, skips, ids):
        for batch in batches(self, source, skips, ids):
            counts.append(len(batch.rows))
            yield batch

    monkeypatch.setattr(Encoder, "batches", counting)
    return counts


@pytest.fixture
def source(tmp_path):
    recipe(tmp_path)
    return open_source("pairs.tar", root=str(tmp_path))


def parts(size: int = 4, scale: float = 1.0, devices: int = 1):
    variables, _ = methods.init_variables(Method(size), jax.random.key(0))
    return Encoder(Method(size), mesh_of(devices), "float32", None, 16), jax.tree.map(
        lambda leaf: leaf * scale, variables
    )


def test_two_functions_of_a_set_take_one_pass(source, encoded):
    encoder, variables = parts()
    shared = SharedEncoder(encoder, variables, BOTH)
    first = shared.source(variables, source, SkipLog())
    second = shared.source(variables, source, SkipLog(), function="features")
    assert sum(encoded) == 64
    plain = encoder.source(variables, source, SkipLog(), function="features")
    np.testing.assert_array_equal(second.outputs, plain.outputs)
    assert first.outputs.dtype == np.float32 and first.outputs.shape == (64, 2)
    assert dataclasses.replace(second, outputs=None) == dataclasses.replace(plain, outputs=None)


@pytest.mark.parametrize("devices", (1, 8))
def test_only_images_that_are_not_known_are_encoded(source, encoded, devices):
    encoder, variables = parts(devices=devices)
    shared = SharedEncoder(encoder, variables, BOTH)
    shared.source(variables, source, SkipLog(), range(20, 50))
    encoded.clear()
    ids = [63, 30, 5, 40, 21]
    found = shared.source(variables, source, SkipLog(), ids)
    assert sum(encoded) == 2
    plain = encoder.source(variables, source, SkipLog(), ids)
    np.testing.assert_array_equal(found.outputs, plain.outputs.astype(np.float32))
    assert dataclasses.replace(found, outputs=None) == dataclasses.replace(plain, outputs=None)


def test_other_functions_options_and_variables_are_not_shared(source, encoded):
    encoder, variables = parts()
    _, others = parts(scale=2.0)
    shared = SharedEncoder(encoder, variables, ["encode_image", "encode_text"])
    shared.source(variables, source, SkipLog())
    for of, function in ((others, "encode_image"), (variables, "features")):
        encoded.clear()
        found = shared.source(of, source, SkipLog(), function=function)
        assert sum(encoded) == 64
        np.testing.assert_array_equal(found.outputs, encoder.source(of, source, SkipLog(), function=function).outputs)


def test_what_is_kept_on_disk_is_found_again_by_the_same_weights_and_preprocessing(source, encoded, tmp_path):
    encoder, variables = parts()
    first = SharedEncoder(encoder, variables, (), tmp_path / "kept").source(variables, source, SkipLog())

    def passes(encoder, variables) -> int:
        encoded.clear()
        shared = SharedEncoder(encoder, variables, (), tmp_path / "kept")
        # The first one needed embeddings alone, and a probe needs features.
        shared.source(variables, source, SkipLog(), function="features")
        np.testing.assert_allclose(
            shared.source(variables, source, SkipLog()).outputs,
            encoder.source(variables, source, SkipLog()).outputs.astype(np.float32),
        )
        return sum(encoded) - 64

    assert len(first.ids) == 64
    assert passes(encoder, variables) == 0
    assert passes(*parts(scale=2.0)) == 64
    assert passes(*parts(size=8)) == 64
    assert passes(encoder, variables) == 0


@pytest.mark.parametrize("damage", (b"", b"no array"))
def test_what_is_damaged_on_disk_is_computed_again(source, encoded, tmp_path, damage):
    encoder, variables = parts()
    SharedEncoder(encoder, variables, (), tmp_path).source(variables, source, SkipLog())
    (place,) = tmp_path.glob("*/*/features.npy")
    place.write_bytes(damage)
    encoded.clear()
    SharedEncoder(encoder, variables, (), tmp_path).source(variables, source, SkipLog())
    assert sum(encoded) == 64


def test_an_image_that_cannot_be_read_is_counted_each_time(tmp_path, encoded):
    from tar_files import write_tar

    recipe(tmp_path)
    record = open_source("pairs.tar", root=str(tmp_path)).read([0])[0]
    members = {"a.png": record.image, "a.txt": b"a", "b.png": b"no image", "b.txt": b"b"}
    source = open_source(str(write_tar(tmp_path / "broken.tar", members.items())))
    encoder, variables = parts()
    shared = SharedEncoder(encoder, variables, BOTH)
    for _ in range(2):
        skips = SkipLog()
        assert shared.source(variables, source, skips).ids == [0]
        assert skips.total == 1
