"""Source of procedural scenes of colored shapes with exact captions; needs no download.

A scene has one or two objects on a background. An object has a color, a shape and a size. A fifth of the (color, shape)
classes never appear in training, so that zero-shot accuracy on them measures composition. Captions mention left and
right, so images must not be mirrored in training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.shapes_drawing import COLORS, PATTERNS, SHAPES, TONES, Background, Figure, Scene, render
from jaxclip.errors import UserError

CLASS_NAMES: tuple[str, ...] = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)

# Every shape is held out in two colors, every color in one or two shapes.
_HELD_OUT_SHAPES = {
    "red": ("star", "ring"),
    "orange": ("square",),
    "yellow": ("triangle", "heart"),
    "green": ("circle", "crescent"),
    "blue": ("heart", "cross"),
    "purple": ("star",),
    "pink": ("circle", "ring"),
    "brown": ("triangle", "crescent"),
    "black": ("cross",),
    "white": ("square",),
}
HELD_OUT: tuple[int, ...] = tuple(
    CLASS_NAMES.index(f"{color} {shape}") for color, shapes in _HELD_OUT_SHAPES.items() for shape in shapes
)
TRAINED_ON: tuple[int, ...] = tuple(index for index in range(len(CLASS_NAMES)) if index not in HELD_OUT)

SPLITS: dict[str, int] = {"train": 20_000, "validation": 1_000, "seen": 960, "unseen": 320, "test": 500}

# Radii as fractions of the image's side. Two large objects must fit beside each other, hence the narrower range.
_RADII_ALONE = {"small": (0.17, 0.20), "large": (0.27, 0.32)}
_RADII_OF_TWO = {"small": (0.14, 0.16), "large": (0.20, 0.22)}
_MARGIN = 0.02
_OFF_CENTER = 0.05
_TILT = math.radians(12)  # a square is still a square and a cross not yet an x

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Procedural scenes as a `Source`.

    Splits: "train" has one object in 60 % of the scenes and two in the others, of the training classes only.
    "validation" and "test" have two objects of the training classes, with full descriptions. "seen" and "unseen" have
    one object each, of the classes of `TRAINED_ON` and `HELD_OUT` in turn.

    A record depends only on (split, id), and nothing is stored. The label is an index into `CLASS_NAMES` for scenes
    with one object, None for two.

    Attributes:
      split: one of `SPLITS`.
      size: height and width of the images in pixels.

    Raises:
      UserError: the split does not exist.
    """

    split: str
    size: int = 48

    chunk_ends: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"shapes has no split {self.split!r}; it has {', '.join(SPLITS)}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, whether in training or held out."""
        return CLASS_NAMES

    def __len__(self) -> int:
        return SPLITS[self.split]

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, with images as uint8 pixels. No record is ever skipped."""
        return [self._record(int(i)) for i in ids]

    def negatives(self, i: int) -> tuple[str, dict[str, str]]:
        """A caption of record `i`, and captions that are false of it by kind, those of `swapped_scenes`."""
        scene = sample_scene(self.split, i)
        return describe_fully(scene)[1], {kind: describe_fully(one)[1] for kind, one in swapped_scenes(scene).items()}

    def _record(self, i: int) -> Record:
        scene = sample_scene(self.split, i)
        label = CLASS_NAMES.index(scene.figures[0].name) if len(scene.figures) == 1 else None
        captions = describe_fully(scene) if self.split in ("validation", "test") else describe(scene)
        return Record(render(scene, self.size), captions, f"shapes:{self.split}/{i}", label)


def sample_scene(split: str, i: int) -> Scene:
    """The scene of a record; depends only on the split's name and the record's id."""
    generator = np.random.Generator(np.random.Philox(key=[list(SPLITS).index(split), i]))
    uniform = iter(generator.random(32).tolist())
    background = _sample_background(uniform, generator)
    if split == "seen":
        return Scene((_sample_alone(TRAINED_ON[i % len(TRAINED_ON)], uniform),), background)
    if split == "unseen":
        return Scene((_sample_alone(HELD_OUT[i % len(HELD_OUT)], uniform),), background)
    if split == "train" and next(uniform) < 0.6:
        return Scene((_sample_alone(_choose(TRAINED_ON, uniform), uniform),), background)
    return Scene(_sample_two(uniform), background)


def _choose(choices: Sequence[T], uniform: Iterator[float]) -> T:
    return choices[int(next(uniform) * len(choices))]


def _between(low: float, high: float, uniform: Iterator[float]) -> float:
    return low + (high - low) * next(uniform)


def _sample_background(uniform: Iterator[float], generator: np.random.Generator) -> Background:
    tone = _choose(tuple(TONES), uniform)
    colors = _choose(TONES[tone], uniform)
    return Background(
        pattern=_choose(PATTERNS, uniform),
        tone=tone,
        colors=colors if next(uniform) < 0.5 else colors[::-1],
        period=_between(0.13, 0.26, uniform),
        angle=_between(0, 2 * math.pi, uniform),
        noise=generator.bytes(25),
    )


def _sample_figure(index: int, radii: dict[str, tuple[float, float]], uniform: Iterator[float]) -> Figure:
    """A random object in the center of the image; the caller moves it."""
    color, shape = CLASS_NAMES[index].split()
    size = _choose(tuple(radii), uniform)
    radius = _between(*radii[size], uniform)
    angle = _between(-_TILT, _TILT, uniform)
    return Figure(color=color, shape=shape, size=size, x=0.5, y=0.5, radius=radius, angle=angle)


def _sample_alone(index: int, uniform: Iterator[float]) -> Figure:
    figure = _sample_figure(index, _RADII_ALONE, uniform)
    x, y = (0.5 + _between(-_OFF_CENTER, _OFF_CENTER, uniform) for _ in range(2))
    return dataclasses.replace(figure, x=x, y=y)


def _sample_two(uniform: Iterator[float]) -> tuple[Figure, Figure]:
    """Two random objects of different classes, one clearly beside or above the other.

    Along one axis their bounding circles are disjoint. Along the other, their centers differ by at most 0.4 times as
    much, so that exactly one of left, right, above and below describes them.
    """
    first_class = int(next(uniform) * len(TRAINED_ON))
    others = len(TRAINED_ON) - 1
    second_class = (first_class + 1 + int(next(uniform) * others)) % len(TRAINED_ON)
    first = _sample_figure(TRAINED_ON[first_class], _RADII_OF_TWO, uniform)
    second = _sample_figure(TRAINED_ON[second_class], _RADII_OF_TWO, uniform)

    apart = first.radius + second.radius + _MARGIN
    slack = 1 - 2 * _MARGIN - first.radius - second.radius - apart
    before, after = sorted((next(uniform) * slack, next(uniform) * slack))
    first_along = _MARGIN + first.radius + before
    second_along = first_along + apart + after - before
    first_across = _between(_MARGIN + first.radius, 1 - _MARGIN - first.radius, uniform)
    reach = 0.4 * (second_along - first_along)
    second_across = _between(
        max(_MARGIN + second.radius, first_across - reach),
        min(1 - _MARGIN - second.radius, first_across + reach),
        uniform,
    )
    if next(uniform) < 0.5:
        first = dataclasses.replace(first, x=first_along, y=first_across)
        second = dataclasses.replace(second, x=second_along, y=second_across)
    else:
        first = dataclasses.replace(first, x=first_across, y=first_along)
        second = dataclasses.replace(second, x=second_across, y=second_along)
    return (first, second) if next(uniform) < 0.5 else (second, first)


def relation(first: Figure, second: Figure) -> str:
    """The first object's position relative to the second: "left of", "right of", "above" or "below"."""
    x, y = first.x - second.x, first.y - second.y
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def describe(scene: Scene) -> tuple[str, ...]:
    """Captions of a scene in lower case, from the shortest to the most detailed. All of them name all objects."""
    if len(scene.figures) == 2:
        first, second = scene.figures
        return (
            f"{first.name} and {second.name}",
            f"{_a(second.name)} and {_a(first.name)} on a {scene.background.pattern} background",
            f"{_a(first.name)} {_to_the(relation(first, second))} {_a(second.name)}",
            *describe_fully(scene),
        )
    (figure,) = scene.figures
    return (
        _a(figure.name),
        f"{figure.name} on a {scene.background.pattern} background",
        f"there is {_a(figure.name)}",
        *describe_fully(scene),
    )


def describe_fully(scene: Scene) -> tuple[str, ...]:
    """The captions that give every object's size and position, which few other scenes share."""
    behind = f"{scene.background.tone} {scene.background.pattern} background"
    first = scene.figures[0]
    sized = f"a {first.size} {first.name}"
    if len(scene.figures) == 1:
        return (
            f"a picture of {sized}",
            f"{sized} on a {behind}",
            f"a {behind} with {sized}",
        )
    second = scene.figures[1]
    other = f"a {second.size} {second.name}"
    forward, back = relation(first, second), relation(second, first)
    return (
        f"{other} {back} {sized}",
        f"a picture of {sized} {forward} {other}",
        f"{sized} {_to_the(forward)} {other} on a {behind}",
        f"a {behind} with {other} {_to_the(back)} {sized}",
    )


def swapped_scenes(scene: Scene) -> dict[str, Scene]:
    """Scenes that differ from one of two objects in what belongs to what; none of one object.

    `swap_color`, `swap_size`: the objects have each other's color or size. The colors of equal shapes stay, because
      they would trade places, and so do those that would give a held-out class, which a model could tell by its rarity.
    `swap_obj`, `replace_rel`: the objects have traded places. Described from the same place on, the caption has them
      swapped; described from the same object on, it has the opposite relation.
    """
    if len(scene.figures) == 1:
        return {}
    first, second = scene.figures
    swapped: dict[str, tuple[Figure, Figure]] = {}
    recolored = dataclasses.replace(first, color=second.color), dataclasses.replace(second, color=first.color)
    trained_on = all(CLASS_NAMES.index(figure.name) in TRAINED_ON for figure in recolored)
    if first.color != second.color and first.shape != second.shape and trained_on:
        swapped["swap_color"] = recolored
    if first.size != second.size:
        resized = dataclasses.replace(first, size=second.size), dataclasses.replace(second, size=first.size)
        swapped["swap_size"] = resized
    moved = dataclasses.replace(first, x=second.x, y=second.y), dataclasses.replace(second, x=first.x, y=first.y)
    swapped |= {"swap_obj": moved[::-1], "replace_rel": moved}
    return {kind: Scene(figures, scene.background) for kind, figures in swapped.items()}


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _to_the(direction: str) -> str:
    return direction if direction in ("above", "below") else f"to the {direction}"
