"""Drawing of scenes of colored shapes: the parts of a scene, and `render`, which rasterizes one.

All lengths are fractions of the image's side, so a scene has no resolution. Objects are polygons that Pillow draws at
three times the size and averages down. A background is a mask between two tones.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

# The eleven basic color terms (Berlin and Kay, "Basic Color Terms", 1969) without gray, which is for backgrounds.
COLORS: dict[str, RGB] = {
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

# Outline color of all objects, tinted with the object's own. A dark outline looks the same on every background, which a
# small model learns in a few minutes.
_INK: RGB = (20, 20, 30)

# Pairs of background tones: desaturated, either light or medium gray. The outlines separate white objects from light
# backgrounds. "grey" is a word of the captions and part of the data set, hence its spelling.
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

# An object is a stack of three polygons: outline, shaded rim and face. These are the distances by which each is grown
# around the shape's sharp-cornered core, and so the radii of its corners, as fractions of the object's radius.
_GROWTH = (0.19, 0.10, 0.02)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One object of a scene.

    Attributes:
      color, shape: a key of `COLORS` and one of `SHAPES`.
      size: "small" or "large", the word in captions.
      x, y: the center, relative to the image's top left corner, as fractions of its side.
      radius: of a circle around the center that contains the whole object, in the same unit.
      angle: clockwise rotation in radians.
    """

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def name(self) -> str:
        """The object's class, such as "red circle"."""
        return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Background:
    """The background of a scene.

    Attributes:
      pattern: one of `PATTERNS`.
      tone: a key of `TONES`, the word in captions.
      colors: the two tones of the pattern; a plain background has the first.
      period: the distance between stripes or dots, as a fraction of the image's side.
      angle: the direction of the gradient, stripes or dots, in radians.
      noise: 25 bytes, the coarse grid from which clouds are interpolated.
    """

    pattern: str
    tone: str
    colors: tuple[RGB, RGB]
    period: float
    angle: float
    noise: bytes


@dataclasses.dataclass(frozen=True)
class Scene:
    """The description of an image: one or two objects that do not overlap, and a background."""

    figures: tuple[Figure, ...]
    background: Background


def render(scene: Scene, size: int) -> np.ndarray:
    """Draws a scene as uint8 RGB pixels of shape [size, size, 3]."""
    first, second = scene.background.colors
    image = Image.new("RGB", (size, size), first)
    if scene.background.pattern != "plain":
        image.paste(second, mask=_pattern_mask(scene.background, size))
    for figure in scene.figures:
        _draw_figure(image, figure)
    return np.asarray(image)


def _pattern_mask(background: Background, size: int) -> Image.Image:
    """The opacity of the second tone, as an 8-bit grayscale image."""
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
    # At zero, a wave rises by 2 pi / (period * size) per pixel; this scale makes edges one pixel wide.
    sharpness = np.float32(255 * background.period * size / (2 * math.pi))
    return Image.fromarray((height * sharpness + 127.5).clip(0, 255).astype(np.uint8))


def _waves(period: float, angle: float, size: int) -> np.ndarray:
    """Plane waves between -1 and 1, float32 [size, size]: sin(x + y) is the imaginary part of exp(ix) exp(iy)."""
    turns = np.arange(size) * (2j * math.pi / (period * size))
    along_x = np.exp(turns * math.cos(angle)).astype(np.complex64)
    along_y = np.exp(turns * math.sin(angle)).astype(np.complex64)
    return (along_y[:, None] * along_x).imag


def _draw_figure(image: Image.Image, figure: Figure) -> None:
    size = image.width
    left, top = int((figure.x - figure.radius) * size) - 1, int((figure.y - figure.radius) * size) - 1
    side = math.ceil(2 * figure.radius * size) + 3
    scale = _SUPERSAMPLING * size
    middle = complex(figure.x, figure.y) * scale - complex(left, top) * _SUPERSAMPLING
    turn = figure.radius * scale * complex(math.cos(figure.angle), math.sin(figure.angle))

    fill = COLORS[figure.color]
    outline = _mix(fill, _INK, 0.8)
    # Transparent pixels have the outline's color, so that averaging does not tint the outline.
    tile = Image.new("RGBA", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), (*outline, 0))
    draw = ImageDraw.Draw(tile)
    for polygon, color in zip(SHAPES[figure.shape], (outline, _mix(fill, (0, 0, 0), 0.14), fill), strict=True):
        draw.polygon((polygon * turn + middle).view(np.float64).tolist(), fill=color)
    tile = tile.reduce(_SUPERSAMPLING)
    image.paste(tile, (left, top), tile)


def _mix(color: RGB, other: RGB, share: float) -> RGB:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
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
    """The polygons of an object, outermost first; the imaginary axis points down, as in images.

    Args:
      core: the shape without rounded corners, complex [points], counter-clockwise, with the imaginary axis up.
      extent: the radius of the outermost point of the result.
    """
    core = core * (extent - _GROWTH[0]) / np.abs(core).max()
    return tuple(np.conj(_grow(core, distance)) for distance in _GROWTH)


def _star() -> np.ndarray:
    return np.exp(0.5j * math.pi + 0.2j * math.pi * np.arange(10)) * np.tile([1, 0.46], 5)


def _cross() -> np.ndarray:
    arm = np.array([0.22 - 0.9j, 0.22 - 0.22j, 0.9 - 0.22j])
    return np.concatenate([arm * 1j**quarter for quarter in range(4)])


def _crescent() -> np.ndarray:
    """A disk of radius 1 minus a disk of radius 0.8 whose center is 0.5 to the right."""
    inner, shift = 0.8, 0.5
    tip_x = (1 - inner**2 + shift**2) / (2 * shift)
    tip_y = math.sqrt(1 - tip_x**2)
    outside = math.atan2(tip_y, tip_x)
    inside = math.atan2(tip_y, tip_x - shift)
    outer_arc = _arc(1, outside, 2 * math.pi - outside, 26)
    inner_arc = shift + _arc(inner, 2 * math.pi - inside, inside, 20)[1:-1]
    return np.concatenate([outer_arc, inner_arc]) * np.exp(0.3j)


def _heart(distance: float) -> np.ndarray:
    """Two round lobes and a tip, grown by `distance`. `_grow` would self-intersect at the junction of the lobes."""
    tip, lobe, radius = -0.66j, 0.36 + 0.2j, 0.38
    # The side is tangent to a circle of radius `distance` around the tip and one of radius + distance around the lobe.
    side = np.angle(lobe - tip) - math.acos(-radius / abs(lobe - tip))
    meeting = math.acos(-lobe.real / (radius + distance))
    right = np.concatenate(
        [tip + _arc(distance, -math.pi / 2, side, 6), lobe + _arc(radius + distance, side, meeting, 20)]
    )
    return np.conj(np.concatenate([right, -np.conj(right[::-1])]))


def _ring(inset: float) -> np.ndarray:
    """An outer circle and a hole as one polygon, joined by a cut of width zero.

    The cut is at the top, because Pillow fills row by row, and a cut along a row would be visible.
    """
    turn = _arc(1, -math.pi / 2, 1.5 * math.pi, 33)
    return np.concatenate([(0.93 - inset) * turn, (0.36 + inset) * turn[::-1]])


# Eight shapes that are distinct at a dozen pixels and under a small rotation (a square and a diamond would not be).
# They are scaled by eye to appear equally large, within a circle of radius 1.
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
