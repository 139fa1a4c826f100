"""Augmentation on the device: equal to the CPU's for equal amounts, with random keys per record."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclip import inputs, sharding
from jaxclip.config import AugmentConfig, DataConfig, MeshConfig, ViewConfig
from jaxclip.context import Context
from jaxclip.data.images import adjust
from jaxclip.device_augmentation import augmentation, augmented, color_jitter, gray, hue, random_blur

AUGMENT = AugmentConfig(color_jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=0.5)


@functools.cache
def images(count: int = 16) -> np.ndarray:
    """Smooth images: HSV on the CPU has 255 hues, whose rounding shows in noise."""
    y, x = np.mgrid[:24, :24] / 24
    phases = np.random.default_rng(0).uniform(0, 6, (count, 3))
    waves = [[np.sin(5 * x + 3 * y + phase) for phase in row] for row in phases]
    return (127 + 120 * np.moveaxis(np.array(waves), 1, -1)).astype(np.uint8)


def test_gray_and_hue_are_those_of_the_cpu():
    x = images()[0]
    np.testing.assert_allclose(gray(jnp.asarray(x, jnp.float32)), adjust.gray(Image.fromarray(x)), atol=1)
    for turn in (-0.3, 0.1, 0.5):
        found = hue(jnp.asarray(x, jnp.float32), jnp.float32(round(turn * 255) / 255))
        # Pillow rounds hue, saturation and value to 8 bits on the way.
        assert np.abs(np.asarray(found) - np.asarray(adjust.hue(Image.fromarray(x), turn), np.float32)).mean() < 2


def test_hue_leaves_gray_as_it_is():
    x = jnp.broadcast_to(jnp.linspace(0, 255, 64).reshape(8, 8, 1), (8, 8, 3))
    np.testing.assert_allclose(hue(x, jnp.float32(0.3)), x, atol=1e-4)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_each_factor_of_the_jitter_is_the_cpus(kind):
    change = (adjust.brightness, adjust.contrast, adjust.saturation)[kind]
    strength = [0.0, 0.0, 0.0, 0.0]
    strength[kind] = 0.5
    x = images()[1]
    key = jax.random.key(3)
    factor = float(jax.random.uniform(jax.random.split(key, 6)[kind], (), minval=0.5, maxval=1.5))
    found = color_jitter(jnp.asarray(x, jnp.float32), key, tuple(strength), 1.0)
    np.testing.assert_allclose(found, np.asarray(change(Image.fromarray(x), factor), np.float32), atol=1.5)


def test_blur_is_the_cpus():
    x, key = images()[2], jax.random.key(4)
    sigma = float(jax.random.uniform(jax.random.split(key)[1], (), minval=0.5, maxval=2.0))
    found = random_blur(jnp.asarray(x, jnp.float32), key, 1.0, (0.5, 2.0))
    np.testing.assert_allclose(found, np.asarray(adjust.blur(Image.fromarray(x), sigma), np.float32), atol=2.5)


def test_without_augmentations_nothing_changes():
    keys = jax.random.split(jax.random.key(0), 16)
    np.testing.assert_array_equal(augmented(images(), keys, AugmentConfig(), False), images())


def test_half_of_the_images_are_mirrored():
    keys = jax.random.split(jax.random.key(0), 16)
    found = np.asarray(augmented(images(), keys, AugmentConfig(), True))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(found, images(), strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(found, images(), strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 3 < sum(mirrored) < 13


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 4), (8, 1)])
def test_what_is_drawn_depends_on_neither_devices_nor_micro_batches(devices, microbatches):
    kinds = {"image": inputs.Image(24), "one": inputs.Image(24, view="ssl")}
    config = DataConfig(train="given", views={"ssl": ViewConfig(augment=AUGMENT)}, augment_on_device=True)
    augment = augmentation(kinds, config)
    batch = {"image": images(), "one": images()}

    def run(devices: int, microbatches: int) -> dict[str, np.ndarray]:
        mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
        ctx = Context(mesh=mesh, key=jax.random.key(1), microbatches=microbatches)
        rows = jax.device_put(batch, sharding.batch_sharding(mesh))
        return jax.tree.map(np.asarray, jax.jit(lambda rows: augment(rows, ctx))(rows))

    found, expected = run(devices, microbatches), run(1, 1)
    np.testing.assert_array_equal(expected["image"], images())
    assert not np.array_equal(expected["one"], images())
    # A sum in another order may round to the neighboring level.
    assert np.abs(found["one"].astype(int) - expected["one"]).max() <= 1


def test_evaluation_is_not_augmented_and_a_config_without_anything_to_do_has_no_function():
    kinds = {"one": inputs.Image(24, view="ssl")}
    config = DataConfig(train="given", views={"ssl": ViewConfig(augment=AUGMENT)}, augment_on_device=True)
    np.testing.assert_array_equal(augmentation(kinds, config)({"one": images()}, Context())["one"], images())
    assert augmentation(kinds, dataclasses.replace(config, augment_on_device=False)) is None
    assert augmentation({"image": inputs.Image(24)}, config) is None
