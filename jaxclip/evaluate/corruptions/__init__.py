"""The 15 common corruptions of images in 5 strengths (Hendrycks and Dietterich 2019, arXiv:1903.12261, figure 1).

The strengths are those that the paper's authors published with ImageNet-C for images of 224 pixels
(github.com/hendrycks/robustness, make_imagenet_c.py). Lengths grow with the size of the image, the noise of each pixel
with its root, and what lies in neither, such as brightness, is the same for all sizes; at 32 pixels most figures are
near those of CIFAR-10-C, where contrast, brightness, fog, snow and frost are weaker. These are implementations of our
own: means over many images may be compared with published ones, single pixels may not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, UInt8

from jaxclip import sharding
from jaxclip.evaluate.corruptions import blur, digital, draws, noise, weather

STRENGTHS = 5
_CHUNK = 8  # images at once on a device: always as many, so that the result does not depend on the batch size


class _Kind(NamedTuple):
    """A corruption of an image of values from 0 to 1, and its parameters.

    Attributes:
      parameters: (strength, size) -> arrays, of the same shapes for all strengths.
      apply: (image [size, size, 3], key, *parameters) -> image, which is clipped to 0 to 1.
    """

    parameters: Callable[[int, int], tuple]
    apply: Callable[..., jax.Array]


_ON_DEVICE = {
    "gaussian_noise": _Kind(noise.gaussian_noise_parameters, noise.gaussian_noise),
    "shot_noise": _Kind(noise.shot_noise_parameters, noise.shot_noise),
    "impulse_noise": _Kind(noise.impulse_noise_parameters, noise.impulse_noise),
    "defocus_blur": _Kind(blur.defocus_blur_parameters, blur.defocus_blur),
    "glass_blur": _Kind(blur.glass_blur_parameters, blur.glass_blur),
    "motion_blur": _Kind(blur.motion_blur_parameters, blur.motion_blur),
    "zoom_blur": _Kind(blur.zoom_blur_parameters, blur.zoom_blur),
    "snow": _Kind(weather.snow_parameters, weather.snow),
    "frost": _Kind(weather.frost_parameters, weather.frost),
    "fog": _Kind(weather.fog_parameters, weather.fog),
    "brightness": _Kind(weather.brightness_parameters, weather.brightness),
    "contrast": _Kind(digital.contrast_parameters, digital.contrast),
    "elastic_transform": _Kind(digital.elastic_transform_parameters, digital.elastic_transform),
    "pixelate": _Kind(digital.pixelate_parameters, digital.pixelate),
}
KINDS: tuple[str, ...] = (*_ON_DEVICE, "jpeg_compression")


def corrupted(
    mesh: Mesh,
    images: UInt8[Array, "n size size 3"],
    seeds: Int[Array, "n"],
    kind: str,
    strength: int,
) -> UInt8[Array, "n size size 3"]:
    """Corrupts images, each device its own ones; JPEG alone is written and read on the host.

    Args:
      mesh: the devices.
      images: spread over the devices by rows, as `Encoder.on_devices` gives them.
      seeds: one per image, likewise: with the kind the only source of randomness, so that an image is corrupted alike
        in every batch, process and number of devices.
      kind: one of `KINDS`.
      strength: from 1 to `STRENGTHS`.
    """
    size = images.shape[1]
    if kind not in _ON_DEVICE:
        share = digital.jpeg_compression(_share(images), digital.jpeg_quality(strength, size))
        return jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), share)
    return _compiled(mesh, kind)(images, seeds, *_parameters(kind, strength, size))


def _share(images: UInt8[Array, "n size size 3"]) -> UInt8[np.ndarray, "share size size 3"]:
    """The rows of an array that are on this process's devices."""
    shards = sorted(images.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


@functools.cache
def _parameters(kind: str, strength: int, size: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(value, np.float32) for value in _ON_DEVICE[kind].parameters(strength, size))


@functools.cache
def _compiled(mesh: Mesh, kind: str) -> Callable[..., jax.Array]:
    """(images, seeds, *parameters) -> images on every device; strengths share a program."""
    number = KINDS.index(kind)

    def one(image: jax.Array, seed: jax.Array, *parameters: jax.Array) -> jax.Array:
        key = draws.fold(draws.key(seed), number)
        result = _ON_DEVICE[kind].apply(image.astype(jnp.float32) / 255, key, *parameters)
        return jnp.round(255 * jnp.clip(result, 0, 1)).astype(jnp.uint8)

    def rows(images: jax.Array, seeds: jax.Array, *parameters: jax.Array) -> jax.Array:
        missing = -len(images) % _CHUNK
        padded = jnp.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]), jnp.pad(seeds, (0, missing))
        chunks = [array.reshape(-1, _CHUNK, *array.shape[1:]) for array in padded]
        together = jax.vmap(one, in_axes=(0, 0, *[None] * len(parameters)))
        result = jax.lax.map(lambda chunk: together(*chunk, *parameters), chunks)
        return result.reshape(-1, *images.shape[1:])[: len(images)]

    def everywhere(images: jax.Array, seeds: jax.Array, *parameters: jax.Array) -> jax.Array:
        specs = sharding.BATCH, sharding.BATCH, *[PartitionSpec()] * len(parameters)
        # Loops start from constants, which are the same on all devices while their results are not.
        mapped = jax.shard_map(rows, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH, check_vma=False)
        return mapped(images, seeds, *parameters)

    return jax.jit(everywhere)
