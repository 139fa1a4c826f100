"""Elementwise augmentation on the device: mirror images, color jitter, gray and Gaussian blur, with per-record keys.

The distributions are those of `jaxclip.data.images.augment`; what is drawn for a record differs from the CPU's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from jaxclip.config import AugmentConfig, DataConfig
from jaxclip.context import Context
from jaxclip.inputs import Image, Inputs

Pixels = Float[Array, "height width 3"]

_SALT = 0xA06  # tells this randomness apart from the method's
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as on the CPU


Batch = Mapping[str, Array]


def augmentation(inputs: Inputs, config: DataConfig) -> Callable[[Batch, Context], Batch] | None:
    """The function that augments the images of a batch; None if there is nothing to do.

    Args:
      inputs: of the method.
      config: with `augment_on_device`.

    Returns:
      (batch, ctx) -> batch, with images uint8 as before. It does nothing in evaluation.
    """
    if not config.augment_on_device:
        return None
    views = {
        name: (config.views[kind.view].augment, config.views[kind.view].flip) if kind.view else (config.augment, False)
        for name, kind in inputs.items()
        if isinstance(kind, Image)
    }
    views = {name: view for name, view in views.items() if view[1] or _changes(view[0])}
    if not views:
        return None

    def augment(batch: Batch, ctx: Context) -> Batch:
        if not ctx.train:
            return dict(batch)

        def images(_: Any, rows: Batch, ctx: Context) -> Batch:
            result = {}
            for number, (name, view) in enumerate(views.items()):
                keys = ctx.fold(number).keys
                assert keys is not None
                result[name] = augmented(rows[name], keys, *view)
            return result

        return {**batch, **ctx.each(images, {name: batch[name] for name in views}, salt=_SALT)}

    return augment


def _changes(config: AugmentConfig) -> bool:
    return any(config.color_jitter) or bool(config.gray) or bool(config.blur)


def augmented(
    images: UInt8[Array, "batch height width 3"], keys: Key[Array, "batch"], config: AugmentConfig, flip: bool
) -> UInt8[Array, "batch height width 3"]:
    """Each image mirrored with probability 1/2, jittered, made gray and blurred, as the config says.

    Args:
      images: 8-bit RGB.
      keys: one per image; the only source of randomness.
      config: of which `color_jitter`, `gray` and `blur` are used.
      flip: whether to mirror images.
    """

    def one(image: UInt8[Array, "height width 3"], key: jax.Array) -> UInt8[Array, "height width 3"]:
        flip_key, jitter_key, gray_key, blur_key = jax.random.split(key, 4)
        x = image.astype(jnp.float32)
        if flip:
            x = jnp.where(jax.random.bernoulli(flip_key), x[:, ::-1], x)
        if any(config.color_jitter):
            x = color_jitter(x, jitter_key, config.color_jitter, config.color_jitter_p)
        if config.gray:
            x = jnp.where(jax.random.bernoulli(gray_key, config.gray), gray(x), x)
        if config.blur:
            x = random_blur(x, blur_key, config.blur, config.blur_sigma)
        return jnp.round(x).astype(jnp.uint8)

    return jax.vmap(one)(images, keys)


def color_jitter(x: Pixels, key: jax.Array, strength: tuple[float, float, float, float], p: float) -> Pixels:
    """Brightness, contrast, saturation and hue changed in random order, with probability p (SimCLR, appendix A).

    Args:
      x: values from 0 to 255.
      key: of this image.
      strength: the greatest departure from 1 of the factors of the first three, and the greatest turn of the hue.
      p: the fraction of images that are changed.
    """
    keys = jax.random.split(key, 6)
    low = [max(0.0, 1 - s) for s in strength[:3]]
    factors = [
        jax.random.uniform(k, (), minval=a, maxval=1 + s) for k, a, s in zip(keys, low, strength[:3], strict=False)
    ]
    turn = jax.random.uniform(keys[3], (), minval=-strength[3], maxval=strength[3])

    def clipped(y: Pixels) -> Pixels:
        return jnp.clip(y, 0, 255)

    def contrast(y: Pixels) -> Pixels:
        mean = jnp.mean(gray(y))
        return clipped(mean + factors[1] * (y - mean))

    changes = (
        lambda y: clipped(factors[0] * y),
        contrast,
        lambda y: clipped(gray(y) + factors[2] * (y - gray(y))),
        lambda y: hue(y, turn),
    )
    order = jax.random.permutation(keys[4], len(changes))
    y = x
    for number in range(len(changes)):
        y = jax.lax.switch(order[number], changes, y)
    return jnp.where(jax.random.bernoulli(keys[5], p), y, x)


def gray(x: Pixels) -> Pixels:
    """The luma in all three channels."""
    return jnp.broadcast_to((x @ jnp.asarray(_LUMA, x.dtype))[..., None], x.shape)


def hue(x: Pixels, turn: jax.Array) -> Pixels:
    """The hue turned by a fraction of the circle, at the same saturation and value (HSV)."""
    most, least = jnp.max(x, axis=-1), jnp.min(x, axis=-1)
    span = most - least
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    safe = jnp.where(span > 0, span, 1)
    # In sixths of the circle: 0 is red, 2 green, 4 blue.
    angle = jnp.where(
        most == red,
        (green - blue) / safe,
        jnp.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    angle = angle + 6 * turn
    # Smith 1978: each channel is the value less a tent over the circle.
    sixths = (angle[..., None] + jnp.asarray([5.0, 3.0, 1.0])) % 6
    tent = jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)
    return most[..., None] - span[..., None] * tent


def random_blur(x: Pixels, key: jax.Array, p: float, sigma: tuple[float, float]) -> Pixels:
    """A Gaussian blur with probability p and a deviation uniform in `sigma`, in pixels; the border is continued."""
    whether, which = jax.random.split(key)
    deviation = jax.random.uniform(which, (), minval=sigma[0], maxval=sigma[1])
    radius = math.ceil(3.5 * sigma[1])
    weights = jnp.exp(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / deviation))
    weights = weights / jnp.sum(weights)
    y = x
    for axis in (0, 1):
        padding = [(radius, radius) if axis == padded else (0, 0) for padded in range(3)]
        lines = jnp.pad(y, padding, mode="edge")
        # A sum of shifted images: all backends fuse it into one sweep.
        shifted = [
            weights[shift] * jax.lax.slice_in_dim(lines, shift, shift + x.shape[axis], axis=axis)
            for shift in range(2 * radius + 1)
        ]
        y = functools.reduce(jnp.add, shifted)
    return jnp.where(jax.random.bernoulli(whether, p), y, x)
