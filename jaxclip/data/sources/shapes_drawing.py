"""Draws scenes of coloured shapes: what a scene is made of, and `render`, which turns one into pixels.

Everything is measured in fractions of the picture's side, so a scene has no resolution of its own. Objects are
polygons drawn with Pillow at three times the size and averaged down; backgrounds are one mask between two tones.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

# The eleven basic colour terms (Berlin and Kay, "Basic Color Terms", 1969) less gray, which the backgrounds own.
COLOURS: dict[str, RGB] = {
    "red": (217, 38, 44),
    "orange": (250, 136, 16),
    "yellow": (252, 213, 32),
    "green": (44, 158, 75),
    "blue": (37, 99, 220),
    "purple": (126, 54, 178),
    "pink": (250, 130, 184),
    "brown": (122, 74, 38),
    "black": (24, 24, 28),
    "white": (255, 255, 255),
}

# What every object is outlined in, tinted with its own colour. One dark line on every background makes an outline mean
# the same everywhere, which a small model learns in a few minutes.
_INK: RGB = (20, 20, 30)

# Pairs of tones that backgrounds are made of: desaturated, light or of a middle grey. White objects stand off from
# the light ones by their outlines.
TONES: dict[str, tuple[tuple[RGB, RGB], ...]] = {
    "light": (
        ((234, 228, 216), (209, 199, 180)),  # sand
        ((219, 229, 236), (188, 204, 216)),  # mist
        ((219, 232, 222), (189, 207, 195)),  # sage
        ((229, 223, 235), (202, 193, 213)),  # lilac
        ((237, 223, 220), (213, 194, 191)),  # rose
        ((229, 229, 227), (199, 199, 198)),  # stone
    ),
    "grey": (
        ((150, 158, 170), (131, 140, 154)),  # slate
        ((146, 163, 158), (127, 146, 141)),  # pine
        ((163, 154, 172), (145, 136, 156)),  # dusk
        ((158, 158, 160), (139, 139, 142)),  # graphite
    ),
}

PATTERNS = ("plain", "gradient", "striped", "dotted", "cloudy")

_SUPERSAMPLING = 3

# An object is three polygons, one on the other: outline, shaded rim, face. This is how far each stands out around
# the shape's sharp-cornered core, and so the rounding of its corners, in radii of the object.
_GROWTH = (0.19, 0.10, 0.02)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One object of a scene.

    Attributes:
      colour, shape: a key of `COLOURS` and one of `SHAPES`.
      size: "small" or "large", as captions say it.
      x, y: the centre, from the picture's top left corner; 1 is the picture's side.
      radius: of a circle around the centre that holds the whole object, in the same unit.
      angle: clockwise rotation in radians.
    """

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def name(self) -> str:
        """The class of the object, as "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Background:
    """What is behind the objects.

    Attributes:
      pattern: one of `PATTERNS`.
      tone: a key of `TONES`, as captions say it.
      colours: the two tones that the pattern mixes; a plain background is the first.
      period: the distance between stripes or dots, in sides of the picture.
      angle: the direction of the gradient, stripes or dots, in radians.
      noise: 25 bytes, the coarse grid that clouds are interpolated from.
    """

    pattern: str
    tone: str
    colours: tuple[RGB, RGB]
    period: float
    angle: float
    noise: bytes


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture before it is drawn: one or two objects that do not overlap, and what is behind them."""

    figures: tuple[Figure, ...]
    background: Background


def render(scene: Scene, size: int) -> np.ndarray:
    """Draws a scene as uint8 RGB pixels of shape [size, size, 3]."""
    first, second = scene.background.colours
    picture = Image.new("RGB", (size, size), first)
    if scene.background.pattern != "plain":
        picture.paste(second, mask=_pattern_mask(scene.background, size))
    for figure in scene.figures:
        _draw_figure(picture, figure)
    return np.asarray(picture)


def _pattern_mask(background: Background, size: int) -> Image.Image:
    """How much of the second tone is where, as an 8-bit greyscale picture."""
    if background.pattern == "gradient":
        x, y = math.cos(background.angle), math.sin(background.angle)
        reach = 127.5 / (abs(x) + abs(y))
        corners = bytes(round(127.5 + reach * (i * x + j * y)) for j in (-1, 1) for i in (-1, 1))
        grid = Image.frombytes("L", (2, 2), corners)
        return grid.resize((size, size), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))
    if background.pattern == "cloudy":
        grid = Image.frombytes("L", (5, 5), background.noise)
        return grid.resize((size, size), Image.Resampling.BICUBIC, box=(0.5, 0.5, 4.5, 4.5))
    across = _waves(background.period, background.angle, size)
    if background.pattern == "striped":
        height = across
    else:
        height = across + _waves(background.period, background.angle + math.pi / 2, size) - np.float32(1.3)
    # A wave rises by 2 pi / (period * size) per pixel where it crosses zero: scaled so, edges are a pixel wide.
    sharpness = np.float32(255 * background.period * size / (2 * math.pi))
    return Image.fromarray((height * sharpness + 127.5).clip(0, 255).astype(np.uint8))


def _waves(period: float, angle: float, size: int) -> np.ndarray:
    """Plane waves between -1 and 1, float32 [size, size]: sin(x + y) is the imaginary part of exp(ix) exp(iy)."""
    turns = np.arange(size) * (2j * math.pi / (period * size))
    along_x = np.exp(turns * math.cos(angle)).astype(np.complex64)
    along_y = np.exp(turns * math.sin(angle)).astype(np.complex64)
    return (along_y[:, None] * along_x).imag


def _draw_figure(picture: Image.Image, figure: Figure) -> None:
    size = picture.width
    left, top = int((figure.x - figure.radius) * size) - 1, int((figure.y - figure.radius) * size) - 1
    side = math.ceil(2 * figure.radius * size) + 3
    scale = _SUPERSAMPLING * size
    middle = complex(figure.x, figure.y) * scale - complex(left, top) * _SUPERSAMPLING
    turn = figure.radius * scale * complex(math.cos(figure.angle), math.sin(figure.angle))

    fill = COLOURS[figure.colour]
    outline = _mix(fill, _INK, 0.8)
    # Transparent pixels carry the outline's colour, so that averaging them with the outline does not tint it.
    tile = Image.new("RGBA", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), (*outline, 0))
    draw = ImageDraw.Draw(tile)
    for polygon, colour in zip(SHAPES[figure.shape], (outline, _mix(fill, (0, 0, 0), 0.14), fill), strict=True):
        draw.polygon((polygon * turn + middle).view(np.float64).tolist(), fill=colour)
    tile = tile.reduce(_SUPERSAMPLING)
    picture.paste(tile, (left, top), tile)


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _arc(radius: float, start: float, stop: float, points: int) -> np.ndarray:
    return radius * np.exp(1j * np.linspace(start, stop, points))


def _grow(polygon: np.ndarray, distance: float) -> np.ndarray:
    """Moves the sides of a counter-clockwise polygon outwards and rounds its outer corners."""
    sides = np.roll(polygon, -1) - polygon
    normals = -1j * sides / np.abs(sides)
    grown = []
    for corner, before, after in zip(polygon, np.roll(normals, 1), normals, strict=True):
        turn = np.angle(after / before)
        if turn > 0:
            steps = np.linspace(0, turn, 1 + math.ceil(turn / 0.3))
            grown.extend(corner + distance * before * np.exp(1j * steps))
        else:
            grown.append(corner + distance * (before + after) / (1 + (before * after.conjugate()).real))
    return np.array(grown)


def _layers(core: np.ndarray, extent: float = 1.0) -> tuple[np.ndarray, ...]:
    """The polygons of an object from the outside in, the imaginary axis pointing down as in pictures.

    Args:
      core: the shape without its rounding, complex [points], counter-clockwise with the imaginary axis up.
      extent: the radius of the outermost point in the result.
    """
    core = core * (extent - _GROWTH[0]) / np.abs(core).max()
    return tuple(np.conj(_grow(core, distance)) for distance in _GROWTH)


def _star() -> np.ndarray:
    return np.exp(0.5j * math.pi + 0.2j * math.pi * np.arange(10)) * np.tile([1, 0.46], 5)


def _cross() -> np.ndarray:
    arm = np.array([0.22 - 0.9j, 0.22 - 0.22j, 0.9 - 0.22j])
    return np.concatenate([arm * 1j**quarter for quarter in range(4)])


def _crescent() -> np.ndarray:
    """A disc of radius 1 less one of radius 0.8 whose centre is 0.5 to its right."""
    inner, shift = 0.8, 0.5
    tip_x = (1 - inner**2 + shift**2) / (2 * shift)
    tip_y = math.sqrt(1 - tip_x**2)
    outside = math.atan2(tip_y, tip_x)
    inside = math.atan2(tip_y, tip_x - shift)
    outer_arc = _arc(1, outside, 2 * math.pi - outside, 26)
    inner_arc = shift + _arc(inner, 2 * math.pi - inside, inside, 20)[1:-1]
    return np.concatenate([outer_arc, inner_arc]) * np.exp(0.3j)


def _heart(distance: float) -> np.ndarray:
    """Two round lobes and a tip, grown by `distance`: `_grow` would tangle where the lobes meet."""
    tip, lobe, radius = -0.66j, 0.36 + 0.2j, 0.38
    # The side touches a circle of radius `distance` around the tip and one of radius + distance around the lobe.
    side = np.angle(lobe - tip) - math.acos(-radius / abs(lobe - tip))
    meeting = math.acos(-lobe.real / (radius + distance))
    right = np.concatenate(
        [tip + _arc(distance, -math.pi / 2, side, 6), lobe + _arc(radius + distance, side, meeting, 20)]
    )
    return np.conj(np.concatenate([right, -np.conj(right[::-1])]))


def _ring(inset: float) -> np.ndarray:
    """An outer circle and a hole as one polygon, joined by a cut that has no width.

    The cut is at the top: Pillow fills row by row, and one along a row would show.
    """
    turn = _arc(1, -math.pi / 2, 1.5 * math.pi, 33)
    return np.concatenate([(0.93 - inset) * turn, (0.36 + inset) * turn[::-1]])


# Eight shapes that stay distinct in a dozen pixels and under a small rotation (a square and a diamond would not).
# They are sized by eye to weigh alike, within a circle of radius 1.
SHAPES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": _layers(_arc(1, 0, 2 * math.pi, 37)[:-1], 0.9),
    "square": _layers(np.array([1 + 1j, -1 + 1j, -1 - 1j, 1 - 1j])),
    "triangle": _layers(np.exp(0.5j * math.pi + 2j * math.pi / 3 * np.arange(3))),
    "star": _layers(_star()),
    "heart": tuple(_heart(distance) for distance in _GROWTH),
    "cross": _layers(_cross()),
    "crescent": _layers(_crescent(), 0.96),
    "ring": tuple(_ring(_GROWTH[0] - distance) for distance in _GROWTH),
}
