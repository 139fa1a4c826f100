"""Snow, frost, fog and brightness."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclip.evaluate.corruptions import draws, resampling
from jaxclip.evaluate.corruptions.blur import smear_parameters, smeared

Image = Float[Array, "size size 3"]
Layer = Float[Array, "size size"]

# Mean and deviation of the noise, size of a flake, least noise of a flake, radius and deviation of the motion, share of
# the image that is not whitened.
_SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55),
)
_FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # factors of the image and of the frost
_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # thickness, decay of its fractal
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
# The least pixels along a side that a layer is drawn at, which is reduced for smaller images: flakes that are larger
# than a pixel, and needles longer than some.
_SNOW_DRAWN = 160
_ICE_DRAWN = 96
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def snow_parameters(strength: int, size: int) -> tuple:
    """Mean and deviation of the noise, its enlargement as a matrix, the threshold, the share, and the motion."""
    mean, deviation, flake, least, radius, motion, share = _SNOW[strength - 1]
    drawn = size * _reduction(size, _SNOW_DRAWN)
    grown = resampling.zoom(drawn, max(1.0, flake * drawn / 224))
    return mean, deviation, grown, least, share, *smear_parameters(radius, motion, 12.0, drawn)


def snow(
    image: Image,
    key: draws.Key,
    mean: Float[Array, ""],
    deviation: Float[Array, ""],
    grown: Float[Array, "drawn drawn"],
    least: Float[Array, ""],
    share: Float[Array, ""],
    *motion: Array,
) -> Image:
    """Flakes that fall within 45 degrees of straight down, over a whitened image."""
    flakes = resampling.applied(grown, mean + deviation * draws.normal(draws.fold(key, 0), grown.shape))
    flakes = jnp.where(flakes < least, 0.0, jnp.clip(flakes, 0, 1))
    angle = draws.uniform(draws.fold(key, 1), low=-math.pi / 4, high=math.pi / 4)
    # Columns are the rows of the transposed layer.
    flakes = _reduced(_smear(flakes.T, angle, motion).T, image.shape[0])
    luma = jnp.sum(image * jnp.asarray(_LUMA), axis=-1, keepdims=True)
    white = share * image + (1 - share) * jnp.maximum(image, 1.5 * luma + 0.5)
    return white + (flakes + jnp.rot90(flakes, 2))[..., None]


def fog_parameters(strength: int, size: int) -> tuple[float, float]:
    """Thickness, and the decay of the fractal."""
    return _FOG[strength - 1]


def fog(image: Image, key: draws.Key, thickness: Float[Array, ""], decay: Float[Array, ""]) -> Image:
    """A plasma fractal that is added, after which the image has its greatest value again."""
    size, most = image.shape[0], jnp.max(image)
    drift = plasma(key, size, decay)
    return (image + thickness * drift[..., None]) * most / (most + thickness)


def plasma(key: draws.Key, size: int, decay: Float[Array, ""]) -> Layer:
    """A plasma fractal from 0 to 1 by the diamond-square algorithm (Fournier et al. 1982).

    Args:
      key: the only source of randomness.
      size: of the result, a part of a periodic field of the next power of two.
      decay: the amplitude of each octave is its square times smaller than that of the octave before.
    """
    field = jnp.zeros((1, 1))
    for octave in range(math.ceil(math.log2(size))):
        side = 2**octave
        noise = decay ** (-2.0 * octave) * draws.uniform(draws.fold(key, octave), (3, side, side), low=-1.0)
        right, below = jnp.roll(field, -1, axis=1), jnp.roll(field, -1, axis=0)
        center = (field + right + below + jnp.roll(below, -1, axis=1)) / 4 + noise[0]
        upper = (field + right + center + jnp.roll(center, 1, axis=0)) / 4 + noise[1]
        left = (field + below + center + jnp.roll(center, 1, axis=1)) / 4 + noise[2]
        quarters = [jnp.stack([field, upper], axis=-1), jnp.stack([left, center], axis=-1)]
        # Without the barrier, all octaves are fused into one loop, which takes long to compile.
        field = jax.lax.optimization_barrier(jnp.stack(quarters, axis=1).reshape(2 * side, 2 * side))
    least, most = jnp.min(field), jnp.max(field)
    return ((field - least) / (most - least))[:size, :size]


def brightness_parameters(strength: int, size: int) -> tuple[float]:
    """What is added to the value."""
    return (_BRIGHTNESS[strength - 1],)


def brightness(image: Image, key: draws.Key, added: Float[Array, ""]) -> Image:
    """A greater value at the same hue and saturation (HSV)."""
    value = jnp.max(image, axis=-1, keepdims=True)
    brighter = jnp.minimum(value + added, 1)
    return jnp.where(value > 0, image * brighter / jnp.where(value > 0, value, 1), brighter)


def frost_parameters(strength: int, size: int) -> tuple:
    """The factors of the image and of the ice, a Gaussian blur as a matrix, and lengths of needles and barbs."""
    drawn = size * _reduction(size, _ICE_DRAWN)
    needle, barb = smear_parameters(24.0, 24.0, 24.0, drawn), smear_parameters(6.0, 6.0, 6.0, drawn)
    return *_FROST[strength - 1], resampling.gaussian(size, size / 10), *needle, *barb


def frost(
    image: Image,
    key: draws.Key,
    factor: Float[Array, ""],
    icing: Float[Array, ""],
    smooth: Float[Array, "size size"],
    *lengths: Array,
) -> Image:
    """Ice crystals over a darkened image.

    The paper's authors add photographs of frost. This texture is generated: needles of ice with barbs, dense on some
    patches of the image and sparse elsewhere.
    """
    return factor * image + icing * ice(key, smooth, *lengths)


def ice(key: draws.Key, smooth: Float[Array, "size size"], *lengths: Array) -> Image:
    """A texture of ice from 0 to 1.

    Args:
      key: the only source of randomness.
      smooth: a Gaussian blur as a matrix.
      *lengths: of needles and of barbs, as `smeared` takes them.
    """
    size = len(smooth)
    drawn = size * _reduction(size, _ICE_DRAWN)
    scale = drawn / 224

    def crystals(number: Array) -> Layer:
        own = draws.fold(key, number)
        slant = draws.uniform(draws.fold(own, 0), low=-math.pi / 4, high=math.pi / 4)
        # The share of the image that needles cover is the same for all sizes.
        seeds = (draws.uniform(draws.fold(own, 1), (drawn, drawn)) < 0.005 / scale).astype(jnp.float32)
        needles = jnp.minimum(25 * scale * _smear(seeds, slant, lengths[:3]), 1)
        sprouts = needles * (draws.uniform(draws.fold(own, 2), (drawn, drawn)) < 0.35)
        barbs = jnp.minimum(3 * _smear(sprouts.T, -slant / 2, lengths[3:]).T, 1)
        layer = jnp.maximum(needles, 0.9 * barbs)
        return jnp.where(number % 2 == 1, layer.T, layer)

    bright = _reduced(jnp.max(jax.vmap(crystals)(jnp.arange(6)), axis=0), size)
    patches = resampling.applied(smooth, draws.normal(draws.fold(key, 6), (size, size)))
    cover = jax.nn.sigmoid(2 * patches / jnp.std(patches) + 0.5)
    light = cover * (0.5 + 0.5 * bright) + (1 - cover) * 0.35 * bright
    return jnp.minimum(light[..., None] * jnp.asarray((0.85, 0.97, 1.05)), 1)


def _smear(layer: Layer, angle: Float[Array, ""], lengths: tuple[Array, ...]) -> Layer:
    return smeared(layer[..., None], angle, *lengths)[..., 0]


def _reduction(size: int, least: int) -> int:
    """How many pixels along a side of a layer of at least `least` make one of the image."""
    return math.ceil(least / size)


def _reduced(layer: Float[Array, "drawn drawn"], size: int) -> Layer:
    return jnp.mean(layer.reshape(size, len(layer) // size, size, -1), axis=(1, 3))
