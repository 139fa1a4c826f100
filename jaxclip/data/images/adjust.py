"""Changes to the pixels of an RGB picture by a given amount. What is drawn at random is drawn in `augment.py`.

Results are rounded to the nearest of the 256 levels; Pillow's sharpness and bilinear samples are cut off.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

# ITU-R BT.601, what Pillow's mode "L" is made with.
_LUMA = np.array([0.299, 0.587, 0.114])

# Steps of the hue circle in Pillow's HSV: 0 is red, and so is 255.
_HUES = 255


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """All values multiplied by a factor: 0 makes the picture black, 1 leaves it as it is."""
    return image if factor == 1 else _map(image, np.arange(256) * factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """All differences from the picture's mean luma multiplied by a factor: 0 makes the picture an even grey."""
    if factor == 1:
        return image
    mean = np.asarray(image.convert("L")).mean()
    return _map(image, mean + (np.arange(256) - mean) * factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """All differences from each pixel's luma multiplied by a factor: 0 takes the colours out."""
    if factor == 1:
        return image
    rows = (1 - factor) * _LUMA + factor * np.eye(3)
    return image.convert("RGB", matrix=tuple(np.column_stack([rows, np.zeros(3)]).flat))


def hue(image: Image.Image, turn: float) -> Image.Image:
    """The hue turned by a share of the circle: a third takes red to green, and green to blue.

    By way of Pillow's HSV, whose 255 hues the turn is rounded to.
    """
    steps = round(turn * _HUES)
    if steps % _HUES == 0:
        return image
    turned = (np.arange(256) + steps) % _HUES
    return image.convert("HSV").point([*turned.tolist(), *range(256), *range(256)]).convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    """The luma (ITU-R BT.601) in all three channels."""
    return image.convert("L").convert("RGB")


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """All differences from a smoothed picture multiplied by a factor; the outermost pixels stay as they are.

    The smoothing is Pillow's `ImageFilter.SMOOTH`: a pixel counts five times as much as each of its eight neighbours.
    """
    return image if factor == 1 else ImageEnhance.Sharpness(image).enhance(factor)


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """A Gaussian blur, the border continued by its last pixels.

    Computed in whole numbers, weights in 256ths and sums in 16 bits. Up to a sigma of 10 it stays within two levels of
    the exact blur, and it takes a third of the time of Pillow's, whose three box blurs are up to 29 levels off near the
    border.

    Args:
      image: an RGB picture.
      sigma: standard deviation in pixels, above 0.
    """
    centre, *side = _kernel(sigma)
    radius = len(side)
    pixels = np.asarray(image)
    for axis in (0, 1):
        length = pixels.shape[axis]
        padding = [(radius, radius) if axis == padded else (0, 0) for padded in range(3)]
        # With the axis in front, a neighbour's values are a slice.
        lines = np.moveaxis(np.pad(pixels, padding, mode="edge").astype(np.uint16), axis, 0)
        total = lines[radius : radius + length] * centre
        total += np.uint16(128)
        for distance, weight in enumerate(side, start=1):
            before, after = radius - distance, radius + distance
            total += (lines[before : before + length] + lines[after : after + length]) * weight
        pixels = np.moveaxis((total >> np.uint16(8)).astype(np.uint8), 0, axis)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _kernel(sigma: float) -> np.ndarray:
    """The middle and one side of a Gaussian in 256ths, uint16 [1 + radius]; with its other side it adds up to 256.

    What is rounded is the sum from the far end on, so that errors do not add up where the kernel is wide.
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
    """The picture turned and scaled about its centre, and then shifted; sampled bilinearly.

    Args:
      image: an RGB picture.
      angle: in radians, counter-clockwise as seen.
      scale: above 1 enlarges.
      shift: in pixels, to the right and down.
      fill: the colour of what comes from outside the picture.
    """
    # From a pixel of the result to where it comes from.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle_x, middle_y = image.width / 2, image.height / 2
    x, y = middle_x + shift[0], middle_y + shift[1]
    return _warp(image, (cos, -sin, middle_x - cos * x + sin * y, sin, cos, middle_y - sin * x - cos * y), fill)


def shear(image: Image.Image, x: float, y: float, fill: tuple[int, int, int]) -> Image.Image:
    """Each row moved to the left by x pixels more than the row above it, each column up by y more than that before it.

    Sampled bilinearly, with `fill` for what comes from outside the picture.
    """
    return _warp(image, (1, x, 0, y, 1, 0), fill)


def shift(image: Image.Image, right: int, down: int, fill: tuple[int, int, int]) -> Image.Image:
    """The picture moved by whole pixels over a plane of one colour."""
    moved = Image.new("RGB", image.size, fill)
    moved.paste(image, (right, down))
    return moved


def _warp(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, int, int]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _map(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Every value v of every channel replaced by values[v], rounded and cut off at 0 and 255; float [256]."""
    return image.point(np.clip(np.rint(values), 0, 255).astype(int).tolist() * 3)
