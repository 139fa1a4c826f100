"""Head of the report: the run's name, a summary in a sentence or two, and headline figures as cards."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from jaxclip.report.workdir import EvaluationRecord, RunRecord
from jaxclip.report.writing import count, duration, escape, number, percent, title_of

# With loss, speed and time these fill one row of a wide screen; the table of results holds every evaluation.
_EVALUATION_CARDS = 3


def head(run: RunRecord) -> str:
    """The page's header as HTML."""
    cards = "".join(_cards(run))
    return (
        f'<header><p class="over">Training report</p><h1>{escape(run.name)}</h1><p class="summary">{_summary(run)}</p>'
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + "</header>"
    )


def _summary(run: RunRecord) -> str:
    """The model, the data, the length of training and the evaluations, in a sentence or two."""
    method, data = run.config.get("method"), run.config.get("data")
    name = method.get("name") if isinstance(method, dict) else method
    source = data.get("train") if isinstance(data, dict) else None
    batch, planned = _whole(run.config.get("batch_size")), _whole(run.config.get("steps"))
    words = f"<b>{escape(name)}</b>" if isinstance(name, str) and name else "A model"
    if source:
        shown = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
        words += f" on <code>{escape(shown)}</code>"
    if run.rows:
        last = run.rows[-1]["step"]
        words += f", trained for {count(last, 'step')}"
        if planned and last < planned:
            words += f" <em>of {planned:,} planned</em>"
        if batch:
            words += f", {count(batch, 'example')} each, {last * batch:,} in all"
        words += "."
    else:
        words += ", with no step logged yet."
    steps = sorted({evaluation.step for evaluation in run.final_evaluations()})
    if not steps:
        return words + " Not evaluated yet."
    return words + f" Evaluated at step {', '.join(f'{step:,}' for step in steps)}."


def _cards(run: RunRecord) -> list[str]:
    cards = [card for card in map(_evaluation_card, run.final_evaluations()) if card][:_EVALUATION_CARDS]
    loss, validation = _last(run, "loss"), _last(run, "validation_loss")
    if np.isfinite(loss):
        under = f"validation {validation:.3f}" if np.isfinite(validation) else "last logged"
        cards.append(_card("training loss", f"{loss:.3f}", under))
    speed = run.column("images_per_second")[1]
    # Of two steps that are logged at the same time, all images count for the first.
    speed = speed[np.isfinite(speed) & (speed > 0)]
    if speed.size:
        wait = run.column("data_wait")[1]
        waiting = f"{percent(float(np.nanmean(wait)))} waiting for data" if np.isfinite(wait).any() else ""
        cards.append(_card("images per second", f"{np.median(speed):,.0f}", waiting or "median"))
    seconds = _training_seconds(run)
    if seconds:
        cards.append(_card("training time", duration(seconds), "without evaluation"))
    return cards


def _card(label: str, value: str, under: str) -> str:
    return f'<div class="card"><span>{escape(label)}</span><strong>{value}</strong><small>{under}</small></div>'


def _evaluation_card(evaluation: EvaluationRecord) -> str:
    """The evaluator's headline, or else the first metric."""
    value, words = evaluation.headline or next(
        ((number(value), title_of(name)) for name, value in evaluation.metrics.items()), ("", "")
    )
    figure, _, unit = value.partition(" ")
    shown = f"{escape(figure)} <i>{escape(unit)}</i>" if unit else escape(figure)
    lines = "<br>".join(map(escape, words.split("\n")))
    return _card(title_of(evaluation.dataset), shown, lines) if value else ""


def _last(run: RunRecord, key: str) -> float:
    values = run.column(key)[1]
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else float("nan")


def _training_seconds(run: RunRecord) -> float:
    """The sum of images over images per second between logged steps; 0 if that is unknown."""
    steps, speed = run.column("images_per_second")
    known = np.isfinite(speed) & (speed > 0)
    return float((np.diff(steps[known], prepend=0.0) * _whole(run.config.get("batch_size")) / speed[known]).sum())


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
