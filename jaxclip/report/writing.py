"""Formatting of numbers, durations and escaped text in the report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"


def escape(text: object) -> str:
    """Text from data, made safe for an element's content or a quoted attribute."""
    return html.escape(str(text), quote=True)


def shortened(text: str, longest: int = 120) -> str:
    """A text as HTML, the end of a very long one only on hovering."""
    if len(text) <= longest:
        return escape(text)
    return f'<span title="{escape(text)}">{escape(text[: longest - 1])}…</span>'


def few_shown(figures: Sequence[str], most: int = 6) -> str:
    """HTML figures of a data set each, those after the first few folded away."""
    shown, others = "".join(figures[:most]), "".join(figures[most:])
    if not others:
        return shown
    more = count(len(figures) - most, "more data set")
    return f"{shown}<details><summary>{more}</summary>{others}</details>"


def title_of(name: str) -> str:
    """The name of a dataset or a metric as words: "shapes_seen" -> "shapes seen"."""
    return name.replace("_", " ")


def number(value: float, digits: int = 4) -> str:
    """A number to so many digits, whole parts kept: 0.4213, 12.5, 12,346, 0.0005, 5e−5; an em dash for NaN."""
    if not math.isfinite(value):
        return "\N{EM DASH}"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e7:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{_bare(mantissa)}e{int(exponent)}".replace("-", MINUS)
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return _bare(f"{value:,.{decimals}f}").replace("-", MINUS)


def _bare(text: str) -> str:
    """Digits without the zeros that end their decimals."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int, thing: str) -> str:
    """A count with its noun: "1 step", "1,500 steps"."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal: 0.934 -> "93.4%"; an em dash for NaN."""
    return f"{100 * fraction:.1f}%".replace("-", MINUS) if math.isfinite(fraction) else "\N{EM DASH}"


def cosine(value: float) -> str:
    """A cosine with two decimals and a real minus sign; an em dash for NaN."""
    return f"{value:.2f}".replace("-", MINUS) if math.isfinite(value) else "\N{EM DASH}"


def steps_short(step: float) -> str:
    """A step for an axis: 0, 500, 1.5k, 20k, 1.2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if step >= size:
            return f"{step / size:.4g}{letter}"
    return f"{step:.4g}"


def duration(seconds: float) -> str:
    """A duration in its two largest units: "42 s", "6 min 5 s", "3 h 20 min", "4 d 2 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
