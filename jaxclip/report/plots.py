"""Plots of figures against figures on axes of their own: dots, lines and whiskers that say what they are.

As in `charts`, the SVG is stretched to its box while strokes and HTML labels keep their size.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxclip.report.writing import escape

# The viewBox's edge, as of charts.
_EDGE = 2000

Point = tuple[float, float]
Tick = tuple[float, str]


def plot(
    title: str,
    drawn: str,
    *,
    across: Sequence[Tick],
    up: Sequence[Tick],
    below: str = "",
    legend: str = "",
    note: str = "",
) -> str:
    """One plot as an HTML figure.

    Args:
      title: the heading, plain text.
      drawn: what `line`, `dot` and `whisker` gave.
      across, up: the ticks of the axes: a place from 0 to 1, and its label.
      below: what the horizontal axis shows, plain text.
      legend: what `key` gave.
      note: plain text below.
    """
    grid = "".join(f'<path class="grid" d="M0 {_down(place)}H{_EDGE}"/>' for place, _ in up)
    labels = "".join(f'<span class="y" style="bottom:{100 * place:.2f}%">{escape(label)}</span>' for place, label in up)
    labels += "".join(
        f'<span class="x" style="left:{100 * place:.2f}%">{escape(label)}</span>' for place, label in across
    )
    axis = f'<span class="below">{escape(below)}</span>' if below else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}</figcaption><div class="plot titled">'
        f'<svg viewBox="0 0 {_EDGE} {_EDGE}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f"{grid}{drawn}</svg>{labels}{axis}</div>"
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + "</figure>"
    )


def line(points: Sequence[Point], kind: str) -> str:
    """A line through points from (0, 0), below on the left, to (1, 1); `kind` is its CSS classes."""
    places = "L".join(f"{_EDGE * x:.0f} {_down(y)}" for x, y in points)
    return f'<path class="line {kind}" d="M{places}"/>' if points else ""


def dot(point: Point, words: str, kind: str) -> str:
    """A dot that says `words` under a pointer."""
    x, y = point
    return f'<path class="dots {kind}" d="M{_EDGE * x:.0f} {_down(y)}h0"><title>{escape(words)}</title></path>'


def whisker(x: float, low: float, high: float, kind: str) -> str:
    """A vertical line between two heights."""
    return f'<path class="whisker {kind}" d="M{_EDGE * x:.0f} {_down(low)}V{_down(high)}"/>'


def key(words: str, kind: str) -> str:
    """An entry of a legend."""
    return f'<span class="key {kind}">{escape(words)}</span>'


def _down(height: float) -> str:
    """A height as the SVG's y, which grows downwards."""
    return f"{_EDGE * (1 - height):.0f}"
