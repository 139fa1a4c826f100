"""Random changes to training pictures. Each is a pure function of (picture, rng), and prints as what it does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from jaxclip.config import AugmentConfig, check_at_least
from jaxclip.data.images import adjust
from jaxclip.errors import UserError

# What is seen where a picture has been moved away.
_BLACK, _GREY = (0, 0, 0), (128, 128, 128)


class Augmentation(Protocol):
    """What all of these have in common.

    The picture is RGB and is not changed; the result has its size, and is the picture itself where nothing is done.
    """

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image: ...


@dataclasses.dataclass(frozen=True)
class Affine:
    """Rotation and change of size about the centre, and shift, as torchvision's `RandomAffine` draws them.

    Sampled bilinearly; what comes from outside the picture is black. A shift is any number of pixels, where torchvision
    rounds it. ConVIRT (Zhang et al. 2020) has `Affine(20, 0.1, (0.95, 1.05))`.

    Attributes:
      degrees: the greatest angle, to either side.
      translate: the greatest shift, as a share of the width and of the height, to either side.
      scale: the least and greatest size relative to the picture's.
    """

    degrees: float
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        _check_within(self, 180, "degrees")
        _check_within(self, 1, "translate")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise UserError(f"scale={self.scale} must be two sizes, 0 < from <= to")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        scale = rng.uniform(*self.scale)
        right, down = rng.uniform(-self.translate, self.translate, size=2) * image.size
        return adjust.affine(image, angle, scale, (right, down), _BLACK)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, changed in random order, as torchvision's `ColorJitter` draws them.

    Each of the first three is changed by a factor uniform in [max(0, 1 - x), 1 + x], the hue by a share of the circle
    uniform in [-hue, hue]. All are changed or, with probability 1 - p, none (SimCLR, Chen et al. 2020, appendix A).
    Values are rounded, and so may be one level above torchvision's, which it cuts off.

    Attributes:
      brightness, contrast, saturation: the greatest departure of each factor from 1.
      hue: the greatest turn, at most 0.5.
      p: the share of pictures that are changed.
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
    """Takes the colours out of a share p of the pictures."""

    p: float

    def __post_init__(self):
        _check_within(self, 1, "p")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return adjust.grey(image) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """Blurs a share p of the pictures with a Gaussian, as MoCo v2 (Chen et al. 2020) and SimCLR (appendix A) do.

    Attributes:
      p: the share of pictures that are blurred.
      sigma: the least and greatest standard deviation in pixels, uniform between the two.
    """

    p: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        _check_within(self, 1, "p")
        low, high = self.sigma
        if not 0 < low <= high < math.inf:
            raise UserError(f"sigma={self.sigma} must be two numbers of pixels, 0 < from <= to")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return adjust.blur(image, rng.uniform(*self.sigma)) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A few operations picked at random, all of one magnitude, none of colour: captions name colours.

    RandAugment (Cubuk et al. 2019) as in ALBEF (Li et al. 2021, section 3.5), with the figures of its published code:
    operations are drawn with replacement from `OPERATIONS`, each of them is carried out with probability p, and its
    strength grows with the magnitude. At 10 it is, for

      brightness, sharpness: the factor 1.9, and 0.1 at magnitude 0, so that 5 is what changes nothing.
      shear_x, shear_y: 0.3 pixels a pixel, from the upper left corner, to either side.
      translate_x, translate_y: 10 pixels, whatever the picture's size, to either side.
      rotate: 30 degrees about the centre, to either side.

    What comes from outside the picture is grey (128).

    Attributes:
      operations: how many are drawn.
      magnitude: from 0 to 10.
      p: the share of drawn operations that are carried out.
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


# The operations of RandAugment, on a picture and a magnitude from -10 to 10, whose sign is the side they go to.


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
    return adjust.shear(image, 0.03 * magnitude, 0, _GREY)


def shear_y(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shear(image, 0, 0.03 * magnitude, _GREY)


def translate_x(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shift(image, magnitude, 0, _GREY)


def translate_y(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.shift(image, 0, magnitude, _GREY)


def rotate(image: Image.Image, magnitude: int) -> Image.Image:
    return adjust.affine(image, math.radians(3 * magnitude), 1, (0, 0), _GREY)


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
    """The augmentations that a config asks for, in the order they are to be applied in, after crop and flip.

    Args:
      config: a part of it that changes nothing is left out.
      where: its name, for messages.

    Raises:
      UserError: an impossible value; the message begins with the key.
    """
    chosen: list[Augmentation] = []

    def add(key: str, kind: Any, *values: Any) -> None:
        try:
            chosen.append(kind(*values))
        except UserError as error:
            raise UserError(f"{where}.{key}: {error}") from None

    degrees, translate, low, high = config.affine
    if degrees or translate or (low, high) != (1, 1):
        add("affine", Affine, degrees, translate, (low, high))
    if config.rand_augment[0]:
        add("rand_augment", RandAugment, *config.rand_augment, config.rand_augment_p)
    if any(config.color_jitter):
        add("color_jitter", ColorJitter, *config.color_jitter, config.color_jitter_p)
    if config.gray:
        add("gray", Grayscale, config.gray)
    if config.blur:
        add("blur", GaussianBlur, config.blur, config.blur_sigma)
    return tuple(chosen)


def _check_within(config: Any, most: float, *names: str) -> None:
    """Raises UserError naming the first of the fields whose value is not from 0 to `most`."""
    for name in names:
        if not 0 <= getattr(config, name) <= most:
            raise UserError(f"{name}={getattr(config, name)} must be from 0 to {most}")
