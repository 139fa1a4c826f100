"""The results of the latest evaluations: tables, and images with the model's texts."""

from __future__ import annotations

from collections.abc import Sequence

from jaxclip.evaluate.evaluator import Table
from jaxclip.report.workdir import EvaluationRecord, ShownExample
from jaxclip.report.writing import count, escape, few_shown, number, percent, shortened, title_of

# A table of more rows is folded away.
_WHOLE_TABLE = 16


def result_tables(evaluations: Sequence[EvaluationRecord]) -> str:
    """The tables of evaluations as HTML; those of the same title and columns are one."""
    groups: dict[tuple[str, tuple[str, ...], bool], list[tuple[EvaluationRecord, Table]]] = {}
    for evaluation in evaluations:
        for table in evaluation.tables:
            groups.setdefault((table.title, table.columns, table.fractions), []).append((evaluation, table))
    return "".join(_joined(group) for group in groups.values())


def example_figures(evaluations: Sequence[EvaluationRecord]) -> str:
    """The images of evaluations with their texts, as HTML; right and wrong answers in rows of their own."""
    figures = []
    for evaluation in evaluations:
        rows = ""
        for right, label in ((True, "right"), (False, "wrong"), (None, "")):
            items = "".join(_example(example) for example in evaluation.examples if example.right is right)
            heading = f'<h3 class="{label}">{label}</h3>' if label else ""
            rows += f'{heading}<ol class="examples">{items}</ol>' if items else ""
        if rows:
            caption = f"<figcaption><b>{escape(title_of(evaluation.dataset))}</b></figcaption>"
            figures.append(f'<figure class="answered">{caption}{rows}</figure>')
    return few_shown(figures)


def _example(example: ShownExample) -> str:
    image = f'<img src="{escape(example.image)}" alt="">'
    if not example.parts:
        return f"<li>{image}<small>{shortened(example.text)}</small></li>"
    parts = "".join(map(_example, example.parts))
    return f'<li class="parted">{image}<div><p>{escape(example.text)}</p><ol>{parts}</ol></div></li>'


def _joined(group: Sequence[tuple[EvaluationRecord, Table]]) -> str:
    first = group[0][1]
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in (*first.columns, "step"))
    body = ""
    for evaluation, table in group:
        for row, values in table.rows.items():
            words = f" <small>{escape(row)}</small>" if row else ""
            cells = "".join(_cell(value, table.fractions) for value in values)
            name = f'<th scope="row">{escape(title_of(evaluation.dataset))}{words}</th>'
            body += f"<tr>{name}{cells}<td>{evaluation.step:,}</td></tr>"
    rows = sum(len(table.rows) for _, table in group)
    shown = (
        f'<div class="box"><table class="results"><thead><tr><th scope="col">{escape(first.title)}</th>{heads}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if rows <= _WHOLE_TABLE:
        return shown
    return f"<details><summary>{escape(first.title)}: {count(rows, 'row')}</summary>{shown}</details>"


def _cell(value: float | int | str | None, fractions: bool) -> str:
    if value is None or isinstance(value, str):
        return f"<td>{'—' if value is None else escape(value)}</td>"
    if not fractions:
        return f"<td>{number(value)}</td>"
    width = min(max(100 * value, 0.0), 100.0)
    return f'<td>{percent(value)}<span class="bar"><i style="width:{width:.1f}%"></i></span></td>'
