"""Deterministic color and geometry adjustments of an RGB image. The random draws are in `augment.py`.

Results are rounded to the nearest of the 256 levels; Pillow's sharpness and bilinear samples are truncated.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

# ITU-R BT.601, the weights of Pillow's mode "L".
_LUMA = np.array([0.299, 0.587, 0.114])

# Steps of the hue circle in Pillow's HSV: 0 is red, and so is 255.
_HUES = 255


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies all values by a factor: 0 gives a black image, 1 the image itself."""
    return image if factor == 1 else _map(image, np.arange(256) * factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies all differences from the image's mean luma by a factor: 0 gives a uniform gray image."""
    if factor == 1:
        return image
    mean = np.asarray(image.convert("L")).mean()
    return _map(image, mean + (np.arange(256) - mean) * factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies all differences from each pixel's luma by a factor: 0 gives a grayscale image."""
    if factor == 1:
        return image
    rows = (1 - factor) * _LUMA + factor * np.eye(3)
    return image.convert("RGB", matrix=tuple(np.column_stack([rows, np.zeros(3)]).flat))


def hue(image: Image.Image, turn: float) -> Image.Image:
    """Rotates the hue by a fraction of the circle: a third turns red into green, and green into blue.

    Computed in Pillow's HSV, to whose 255 hues the rotation is rounded.
    """
    steps = round(turn * _HUES)
    if steps % _HUES == 0:
        return image
    turned = (np.arange(256) + steps) % _HUES
    return image.convert("HSV").point([*turned.tolist(), *range(256), *range(256)]).convert("RGB")


def gray(image: Image.Image) -> Image.Image:
    """The luma (ITU-R BT.601) in all three channels."""
    return image.convert("L").convert("RGB")


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies all differences from a smoothed image by a factor; the outermost pixels do not change.

    The smoothing is Pillow's `ImageFilter.SMOOTH`: a pixel weighs five times as much as each of its eight neighbors.
    """
    return image if factor == 1 else ImageEnhance.Sharpness(image).enhance(factor)


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """A Gaussian blur; the border is padded with its last pixels.

    Computed in integers: weights in 256ths, sums in 16 bits. Up to a sigma of 10 the result is within two levels of the
    exact blur. It takes a third of the time of Pillow's blur, whose three box blurs are up to 29 levels off near the
    border.

    Args:
      image: an RGB image.
      sigma: standard deviation in pixels, above 0.
    """
    center, *side = _kernel(sigma)
    radius = len(side)
    pixels = np.asarray(image)
    for axis in (0, 1):
        length = pixels.shape[axis]
        padding = [(radius, radius) if axis == padded else (0, 0) for padded in range(3)]
        # With the axis in front, a neighbor's values are a slice.
        lines = np.moveaxis(np.pad(pixels, padding, mode="edge").astype(np.uint16), axis, 0)
        total = lines[radius : radius + length] * center
        total += np.uint16(128)
        for distance, weight in enumerate(side, start=1):
            before, after = radius - distance, radius + distance
            total += (lines[before : before + length] + lines[after : after + length]) * weight
        pixels = np.moveaxis((total >> np.uint16(8)).astype(np.uint8), 0, axis)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _kernel(sigma: float) -> np.ndarray:
    """The center and one side of a Gaussian in 256ths, uint16 [1 + radius]; with the other side it sums to 256.

    The cumulative sum from the far end is rounded, not each weight, so that errors do not add up in a wide kernel.
    """
    distance = np.arange(math.ceil(3.5 * sigma) + 1)
    weight = np.exp(-0.5 * (distance / sigma) ** 2)
    weight *= 256 / (2 * weight.sum() - weight[0])
    from_far = np.rint(np.cumsum(weight[:0:-1])).astype(np.uint16)
    side = np.trim_zeros(np.diff(from_far, prepend=np.uint16(0))[::-1], "b")
    return np.concatenate([[256 - 2 * side.sum()], side]).astype(np.uint16)


def affine(
    image: Image.Image, angle: float, scale: float, shift: tuple[float, float], fill: tuple[int, int, int]
) -> Image.Image:
    """Rotates and scales the image about its center, then shifts it, with bilinear sampling.

    Args:
      image: an RGB image.
      angle: counter-clockwise, in radians.
      scale: above 1 enlarges.
      shift: in pixels, right and down.
      fill: the color of pixels from outside the image.
    """
    # Maps a pixel of the result to its position in the image.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle_x, middle_y = image.width / 2, image.height / 2
    x, y = middle_x + shift[0], middle_y + shift[1]
    return _warp(image, (cos, -sin, middle_x - cos * x + sin * y, sin, cos, middle_y - sin * x - cos * y), fill)


def shear(image: Image.Image, x: float, y: float, fill: tuple[int, int, int]) -> Image.Image:
    """Shifts each row left by x pixels more than the row above it, each column up by y more than the previous one.

    Bilinear sampling; `fill` is the color of pixels from outside the image.
    """
    return _warp(image, (1, x, 0, y, 1, 0), fill)


def shift(image: Image.Image, right: int, down: int, fill: tuple[int, int, int]) -> Image.Image:
    """Shifts the image by whole pixels over a uniform background."""
    moved = Image.new("RGB", image.size, fill)
    moved.paste(image, (right, down))
    return moved


def _warp(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, int, int]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _map(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Replaces each value v of each channel by values[v], rounded and clipped to [0, 255]; `values` is float [256]."""
    return image.point(np.clip(np.rint(values), 0, 255).astype(int).tolist() * 3)
