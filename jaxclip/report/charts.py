"""Line charts over training steps: SVG curves with HTML labels.

The SVG is stretched to its box (`preserveAspectRatio="none"`) while strokes keep their width and labels are
HTML placed in percent, so text has the same size on a phone as on a wide screen. Dots are strokes of no
length with round ends, which stay round however the box is stretched.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxclip.report.writing import escape, number, percent, steps_short

# More points than a chart has pixels only make the page heavy.
_MOST_POINTS = 400
# The viewBox's edge: coordinates are whole numbers up to it, fine enough for any screen.
_EDGE = 2000


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
      name: what the legend says, plain text.
      steps: float64 [n], ascending.
      values: float64 [n], NaN leaves a gap.
      color: which of the page's six colors; from the seventh curve on they come again, dashed.
      measured: a value measured now and then: a dot at each, joined by a line.
      smoothed: the values are noisy: draw them faintly, and their running mean over them.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    color: int = 0
    measured: bool = False
    smoothed: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    include: Sequence[float] = (),
    fractions: bool = False,
    small: bool = False,
    note: str = "",
) -> str:
    """One chart of curves over steps as an HTML figure; "" if no series has a finite value.

    Args:
      title: the heading, plain text.
      series: the curves, drawn in this order.
      include: values that the vertical axis must span whatever the data.
      fractions: the values are fractions, to be written as percentages.
      small: a low chart with few ticks, for small multiples.
      note: plain text under the heading's legend.
    """
    series = [one for one in series if np.isfinite(one.values).any()]
    if not series:
        return ""
    write = percent if fractions else number
    curves = [_curve(one) for one in series]
    last = max(max(float(one.steps.max()) for one in series), 1.0)
    low, high, ticks = axis(_span(series, curves, include), 3 if small else 5)
    marks = zip(ticks, tick_labels(ticks, fractions), strict=True)
    across = [tick for tick in _ticks(0, last, 3 if small else 5) if tick <= last and tick == int(tick)]

    def x(step: float) -> float:
        return step / last

    def y(value: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0)

    grid = "".join(f'<path class="grid" d="M0 {_down(y(tick))}H{_EDGE}"/>' for tick in ticks)
    lines = "".join(_draw(one, curve, x, y) for one, curve in zip(series, curves, strict=True))
    labels = "".join(f'<span class="y" style="bottom:{100 * y(tick):.2f}%">{mark}</span>' for tick, mark in marks)
    labels += "".join(
        f'<span class="x" style="left:{100 * x(tick):.2f}%">{steps_short(tick)}</span>' for tick in across
    )
    legend = "".join(f'<span class="key c{one.color % 6}">{escape(one.name)}</span>' for one in series)
    if len(series) == 1:
        final = series[0].values[np.isfinite(series[0].values)][-1]
        legend = f'<span class="last">last {write(float(final))}</span>'
    hover = [
        [one.name, one.color % 6, [int(step) for step in steps], [write(float(value)) for value in values]]
        for one, (steps, values) in zip(series, curves, strict=True)
    ]
    cut = _cut_note(series, high, write)
    words = " ".join(text for text in (note, cut) if text)
    return (
        f'<figure class="chart{" low" if small else ""}">'
        f"<figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<div class="plot" data-last="{last:.0f}" data-series="{escape(json.dumps(hover, separators=(",", ":")))}">'
        f'<svg viewBox="0 0 {_EDGE} {_EDGE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)} over training steps">{grid}{lines}</svg>{labels}</div>'
        + (f'<p class="note">{escape(words)}</p>' if words else "")
        + "</figure>"
    )


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """The running mean of values [n] under a Gaussian of the given width in points, ignoring NaN.

    Near the ends the mean is over the part of the window that exists; NaN if the whole window is.
    """
    reach = max(1, math.ceil(3 * width))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    finite = np.isfinite(values)
    padding = (reach, reach)
    weights = np.convolve(np.pad(finite.astype(np.float64), padding), window, mode="valid")
    sums = np.convolve(np.pad(np.where(finite, values, 0.0), padding), window, mode="valid")
    return np.divide(sums, weights, out=np.full(len(values), np.nan), where=weights > 1e-12)


def _curve(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The steps and values of a curve's main line, at most `_MOST_POINTS` of them."""
    steps, values = series.steps, series.values
    if len(values) > _MOST_POINTS:
        groups = np.array_split(np.arange(len(values)), _MOST_POINTS)
        steps = np.array([steps[group[-1]] for group in groups])
        values = np.array([_mean(values[group]) for group in groups])
    if series.smoothed and len(values) >= 24:
        values = smooth(values, len(values) / 60)
    return steps, values


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _extremes(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The raw values, thinned by keeping the lowest and the highest of each group, so that spikes stay."""
    steps, values = series.steps, series.values
    if len(values) <= 2 * _MOST_POINTS:
        return steps, values
    kept = set()
    for group in np.array_split(np.arange(len(values)), _MOST_POINTS):
        finite = group[np.isfinite(values[group])]
        kept |= {group[0]} if not finite.size else {finite[values[finite].argmin()], finite[values[finite].argmax()]}
    order = np.array(sorted(kept))
    return steps[order], values[order]


def _span(series: Sequence[Series], curves: Sequence[tuple[np.ndarray, np.ndarray]], include: Sequence[float]) -> tuple:
    """The lowest and highest value to show: every main line whole, raw values but for their rarest peaks."""
    shown = [np.asarray(include, dtype=np.float64)] + [values for _, values in curves]
    for one in series:
        finite = one.values[np.isfinite(one.values)]
        shown.append(_without_peaks(finite) if one.smoothed and len(finite) >= 24 else finite)
    everything = np.concatenate(shown)
    everything = everything[np.isfinite(everything)]
    return float(everything.min()), float(everything.max())


def _without_peaks(values: np.ndarray) -> np.ndarray:
    """The lowest and the highest value, or where nearly all lie if these are far away."""
    low, high = np.percentile(values, [0.5, 99.5])
    room = (high - low) / 4
    lowest, highest = values.min(), values.max()
    return np.array([lowest if lowest >= low - room else low, highest if highest <= high + room else high])


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers around [low, high]: the first at or below it, the last at or above it."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Without what multiplication adds to the last digits, whatever the size of the numbers.
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def axis(span: tuple[float, float], about: int) -> tuple[float, float, list[float]]:
    """The ends of an axis that spans two values, and about so many round ticks, the ends among them."""
    low, high = span
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):  # one value only: give it room
        room = abs(high) / 2 or 1.0
        low, high = low - room, high + room
    ticks = _ticks(low, high, about)
    return ticks[0], ticks[-1], ticks


def tick_labels(ticks: Sequence[float], fractions: bool) -> list[str]:
    """The ticks' labels, with as many digits as it takes to tell one from the next."""
    largest = max(abs(tick) for tick in ticks)
    digits = max(4, math.floor(math.log10(largest)) - math.floor(math.log10(ticks[1] - ticks[0])) + 2)
    return [f"{number(100 * tick, digits)}%" if fractions else number(tick, digits) for tick in ticks]


def _cut_note(series: Sequence[Series], high: float, write: Callable[[float], str]) -> str:
    """A note if a peak is higher than the chart."""
    tops = [(float(np.nanmax(one.values)), one) for one in series]
    top, one = max(tops, key=lambda pair: pair[0])
    if top <= high * (1 + 1e-9):
        return ""
    return f"Peaks are cut off; the highest is {write(top)} at step {int(one.steps[np.nanargmax(one.values)]):,}."


def _draw(series: Series, curve: tuple[np.ndarray, np.ndarray], x: Callable, y: Callable) -> str:
    dashed = " dashed" if series.color >= 6 else ""
    paint = f"c{series.color % 6}{dashed}"
    drawn = ""
    if series.smoothed and len(series.values) >= 24:
        drawn += f'<path class="raw {paint}" d="{_path(*_extremes(series), x, y)}"/>'
    drawn += f'<path class="line {paint}" d="{_path(*curve, x, y)}"/>'
    finite = np.isfinite(curve[1])
    if series.measured or finite.sum() == 1:
        places = zip(curve[0][finite], curve[1][finite], strict=True)
        dots = "".join(f"M{_EDGE * x(step):.0f} {_down(y(value))}h0" for step, value in places)
        drawn += f'<path class="dots {paint}" d="{dots}"/>'
    return drawn


def _path(steps: np.ndarray, values: np.ndarray, x: Callable, y: Callable) -> str:
    """Lines through the finite points; a gap at every other, a lone point as a stroke of no length."""
    parts: list[str] = []
    joined = False
    for step, value in zip(steps, values, strict=True):
        if not np.isfinite(value):
            joined = False
            continue
        place = f"{_EDGE * x(step):.0f} {_down(y(value))}"
        parts.append(f"L{place}" if joined else f"M{place}h0")
        joined = True
    return "".join(parts)


def _down(height: float) -> str:
    """A height in [0, 1] as the SVG's y, which grows downwards."""
    return f"{_EDGE * (1 - height):.0f}"
