"""The accuracy of each class: a grid if the classes are pairs of words, else a list of bars."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxclip.report.style import DARK
from jaxclip.report.workdir import EvaluationRecord
from jaxclip.report.writing import escape, few_shown, percent, title_of

# Up to this many classes are listed whole; of more, the best and the worst `_ENDS`, the others folded away.
_WHOLE_LIST = 40
_ENDS = 15


def class_figures(evaluations: Sequence[EvaluationRecord]) -> str:
    """The accuracy of each class of each evaluation, as HTML; "" if none has it.

    Two evaluations whose classes are disjoint parts of one grid (seen and held-out pairs) share it.
    """
    waiting = [evaluation for evaluation in evaluations if evaluation.class_accuracy]
    figures = []
    while waiting:
        evaluation = waiting.pop(0)
        other = next((other for other in waiting if _share_a_grid(evaluation, other)), None)
        if other is not None:
            waiting.remove(other)
            seen, held_out = sorted((evaluation, other), key=lambda one: -len(one.class_accuracy))
            figures.append(_grid(seen, held_out))
        elif _is_grid(evaluation.class_accuracy):
            figures.append(_grid(evaluation, None))
        else:
            figures.append(_bars(evaluation))
    return few_shown(figures)


def _is_grid(names: Iterable[str]) -> bool:
    """Whether names are pairs of words ("red circle") that fill at least half of first words x second words."""
    pairs = [name.split() for name in names]
    if not all(len(pair) == 2 for pair in pairs):
        return False
    first, second = ({pair[place] for pair in pairs} for place in (0, 1))
    return len(first) > 1 and len(second) > 1 and 2 * len(pairs) >= len(first) * len(second)


def _share_a_grid(one: EvaluationRecord, other: EvaluationRecord) -> bool:
    names, others = set(one.class_accuracy), set(other.class_accuracy)
    return names.isdisjoint(others) and _is_grid(names | others)


def _grid(seen: EvaluationRecord, held_out: EvaluationRecord | None) -> str:
    marked = held_out.class_accuracy if held_out else {}
    accuracy = {tuple(name.split()): value for name, value in (seen.class_accuracy | marked).items()}
    # In the set's own order of classes, which the absence of held-out classes does not shift.
    order = [pair for pair in (tuple(name.split()) for name in seen.classes) if len(pair) == 2] + list(accuracy)
    firsts, seconds = ({pair[place] for pair in accuracy} for place in (0, 1))
    rows = [word for word in dict.fromkeys(pair[0] for pair in order) if word in firsts]
    columns = [word for word in dict.fromkeys(pair[1] for pair in order) if word in seconds]
    outlined = {tuple(name.split()) for name in marked}

    def mean(pairs: Iterable[tuple[str, str]]) -> str:
        return f"{100 * np.mean([accuracy[pair] for pair in pairs if pair in accuracy]):.0f}"

    head = "".join(f'<th scope="col"><span>{escape(column)}</span></th>' for column in columns)
    body = ""
    for row in rows:
        cells = "".join(_cell((row, column), accuracy, outlined) for column in columns)
        row_mean = mean(itertools.product([row], columns))
        body += f'<tr><th scope="row">{escape(row)}</th>{cells}<td class="mean">{row_mean}</td></tr>'
    feet = "".join(f'<td class="mean">{mean(itertools.product(rows, [column]))}</td>' for column in columns)
    names = escape(title_of(seen.dataset))
    key = f'<span class="swatch"></span>{names}: mean {_mean_of(seen)}'
    if held_out:
        outside = escape(title_of(held_out.dataset))
        names += f" and {outside}"
        key += f' <span class="swatch held"></span>outlined, {outside}: mean {_mean_of(held_out)}'
    return (
        f'<figure class="classes"><figcaption><b>{names}</b> {_chosen_from(seen)}</figcaption>'
        f'<div class="box"><table class="heat"><thead><tr><td></td>{head}<th scope="col"><span>mean</span></th></tr>'
        f'</thead><tbody>{body}<tr><th scope="row">mean</th>{feet}<td></td></tr></tbody></table></div>'
        f'<p class="note">Percentage of images classified correctly. {key}</p></figure>'
    )


def _cell(pair: tuple[str, str], accuracy: dict[tuple[str, ...], float], outlined: set[tuple[str, ...]]) -> str:
    if pair not in accuracy:
        return '<td class="none"></td>'
    value = accuracy[pair]
    kind = f"v{' hi' if value > DARK else ''}{' held' if pair in outlined else ''}"
    title = f"{' '.join(pair)}: {percent(value)}"
    return f'<td class="{kind}" style="--v:{value:.3f}" title="{escape(title)}"><span>{100 * value:.0f}</span></td>'


def _mean_of(evaluation: EvaluationRecord) -> str:
    return percent(float(np.mean(list(evaluation.class_accuracy.values()))))


def _chosen_from(evaluation: EvaluationRecord) -> str:
    return f'<span class="last">chosen among {len(evaluation.classes):,} classes</span>' if evaluation.classes else ""


def _bars(evaluation: EvaluationRecord) -> str:
    ranked = sorted(evaluation.class_accuracy.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) <= _WHOLE_LIST:
        lists = f'<ol class="bars many">{_items(ranked)}</ol>'
    else:
        best, others, worst = ranked[:_ENDS], ranked[_ENDS:-_ENDS], ranked[-_ENDS:]
        lists = (
            f'<div class="pair"><div><h3>Best {_ENDS}</h3><ol class="bars">{_items(best)}</ol></div>'
            f'<div><h3>Worst {_ENDS}</h3><ol class="bars">{_items(worst)}</ol></div></div>'
            f"<details><summary>The {len(others)} classes between</summary>"
            f'<ol class="bars many">{_items(others)}</ol></details>'
        )
    return (
        f'<figure class="classes"><figcaption><b>{escape(title_of(evaluation.dataset))}</b> {_chosen_from(evaluation)}'
        f"</figcaption>{lists}</figure>"
    )


def _items(ranked: Sequence[tuple[str, float]]) -> str:
    return "".join(
        f'<li><span class="name">{escape(name)}</span><span class="bar"><i style="width:{100 * value:.1f}%"></i></span>'
        f'<span class="value">{percent(value)}</span></li>'
        for name, value in ranked
    )
