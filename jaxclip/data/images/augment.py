"""Random augmentations of training images. Each is a pure function of (image, rng) with a readable repr."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from jaxclip.config import AugmentConfig, check_at_least
from jaxclip.data.images import adjust
from jaxclip.errors import UserError

# Fill colors of the area outside a moved image.
_BLACK, _GRAY = (0, 0, 0), (128, 128, 128)


class Augmentation(Protocol):
    """An augmentation of an RGB image.

    The input is never modified. The result has its size, and is the same object if nothing was changed.
    """

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image: ...


@dataclasses.dataclass(frozen=True)
class Affine:
    """Rotation and scaling about the center, and a shift, drawn as by torchvision's `RandomAffine`.

    Bilinear sampling; pixels from outside the image are black. Unlike in torchvision, the shift is not rounded to whole
    pixels. ConVIRT (Zhang et al. 2020) uses `Affine(20, 0.1, (0.95, 1.05))`.

    Attributes:
      degrees: maximum angle, in either direction.
      translate: maximum shift in either direction, as a fraction of the width and of the height.
      scale: minimum and maximum scale factor.
    """

    degrees: float
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        _check_within(self, 180, "degrees")
        _check_within(self, 1, "translate")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise UserError(f"scale={self.scale} must be two factors with 0 < min <= max")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        scale = rng.uniform(*self.scale)
        right, down = rng.uniform(-self.translate, self.translate, size=2) * image.size
        return adjust.affine(image, angle, scale, (right, down), _BLACK)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes of brightness, contrast, saturation and hue in random order, drawn as by torchvision's `ColorJitter`.

    Each of the first three is changed by a factor uniform in [max(0, 1 - x), 1 + x], the hue by a fraction of the
    circle uniform in [-hue, hue]. With probability 1 - p the image is not changed at all (SimCLR, Chen et al. 2020,
    appendix A). Values are rounded, so they may be one level above torchvision's, which truncates.

    Attributes:
      brightness, contrast, saturation: maximum deviation of each factor from 1.
      hue: maximum rotation, at most 0.5.
      p: the probability of changing an image.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 1.0

    def __post_init__(self):
        check_at_least(self, 0, "brightness", "contrast", "saturation")
        _check_within(self, 0.5, "hue")
        _check_within(self, 1, "p")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() >= self.p:
            return image
        changes = [
            (adjust.brightness, _factor(self.brightness, rng)),
            (adjust.contrast, _factor(self.contrast, rng)),
            (adjust.saturation, _factor(self.saturation, rng)),
            (adjust.hue, rng.uniform(-self.hue, self.hue)),
        ]
        for which in rng.permutation(len(changes)):
            change, amount = changes[which]
            image = change(image, amount)
        return image


def _factor(strength: float, rng: np.random.Generator) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Conversion to grayscale with probability p."""

    p: float

    def __post_init__(self):
        _check_within(self, 1, "p")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return adjust.gray(image) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian blur with probability p, as in MoCo v2 (Chen et al. 2020) and SimCLR (appendix A).

    Attributes:
      p: the probability of blurring an image.
      sigma: minimum and maximum standard deviation in pixels; uniform between the two.
    """

    p: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        _check_within(self, 1, "p")
        low, high = self.sigma
        if not 0 < low <= high < math.inf:
            raise UserError(f"sigma={self.sigma} must be two numbers of pixels with 0 < min <= max")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return adjust.blur(image, rng.uniform(*self.sigma)) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Random operations of one magnitude. Color operations are left out, because captions name colors.

    RandAugment (Cubuk et al. 2019) as in ALBEF (Li et al. 2021, section 3.5), with the values of its published code:
    operations are drawn with replacement from `OPERATIONS`, each is applied with probability p, and its strength grows
    with the magnitude. At magnitude 10 the strength is

      brightness, sharpness: a factor of 1.9. It is 0.1 at magnitude 0, so magnitude 5 changes nothing.
      shear_x, shear_y: 0.3 pixels per pixel from the upper left corner, in either direction.
      translate_x, translate_y: 10 pixels whatever the image's size, in either direction.
      rotate: 30 degrees about the center, in either direction.

    Pixels from outside the image are gray (128).

    Attributes:
      operations: the number of operations drawn.
      magnitude: from 0 to 10.
      p: the probability of applying an operation that was drawn.
    """

    operations: int = 2
    magnitude: int = 7
    p: float = 0.5

    def __post_init__(self):
        check_at_least(self, 0, "operations")
        _check_within(self, 10, "magnitude")
        _check_within(self, 1, "p")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for which in rng.integers(len(OPERATIONS), size=self.operations):
            if rng.random() < self.p:
                image = OPERATIONS[which](image, self.magnitude if rng.random() < 0.5 else -self.magnitude)
        return image


# RandAugment's operations on an image, with a magnitude from -10 to 10. Its sign is the direction.


def identity(image: Image.Image, magnitude: int) -> Image.Image:
    return image


def autocontrast(image: Image.Image, magnitude: int) -> Image.Image:
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, magnitude: int) -> Image.Image:
    return ImageOps.equalize(image)


def brightness(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.brightness(image, 0.1 + 0.18 * abs(magnitude))


def sharpness(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.sharpness(image, 0.1 + 0.18 * abs(magnitude))


def shear_x(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shear(image, 0.03 * magnitude, 0, _GRAY)


def shear_y(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shear(image, 0, 0.03 * magnitude, _GRAY)


def translate_x(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shift(image, magnitude, 0, _GRAY)


def translate_y(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shift(image, 0, magnitude, _GRAY)


def rotate(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.affine(image, math.radians(3 * magnitude), 1, (0, 0), _GRAY)


OPERATIONS = (
    identity,
    autocontrast,
    equalize,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
)


def from_config(config: AugmentConfig, where: str = "data.augment") -> tuple[Augmentation, ...]:
    """The augmentations of a config, in the order in which they are applied after crop and flip.

    Args:
      config: settings that change nothing add no augmentation.
      where: its name, for messages.

    Raises:
      UserError: a value is out of range; the message begins with the key.
    """
    chosen: list[Augmentation] = []

    def add(key: str, kind: Any, **values: Any) -> None:
        try:
            chosen.append(kind(**values))
        except UserError as error:
            raise UserError(f"{where}.{key}: {error}") from None

    degrees, translate, low, high = config.affine
    if degrees or translate or (low, high) != (1, 1):
        add("affine", Affine, degrees=degrees, translate=translate, scale=(low, high))
    operations, magnitude = config.rand_augment
    if operations:
        add("rand_augment", RandAugment, operations=operations, magnitude=magnitude, p=config.rand_augment_p)
    brightness, contrast, saturation, hue = config.color_jitter
    if any(config.color_jitter):
        add(
            "color_jitter",
            ColorJitter,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            p=config.color_jitter_p,
        )
    if config.gray:
        add("gray", Grayscale, p=config.gray)
    if config.blur:
        add("blur", GaussianBlur, p=config.blur, sigma=config.blur_sigma)
    return tuple(chosen)


def _check_within(config: Any, most: float, *names: str) -> None:
    """Raises UserError for the first of the fields whose value is not from 0 to `most`."""
    for name in names:
        if not 0 <= getattr(config, name) <= most:
            raise UserError(f"{name}={getattr(config, name)} must be from 0 to {most}")
