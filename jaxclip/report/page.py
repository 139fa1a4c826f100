"""The page's parts in reading order: what was trained and how well, how it learned, what it learned, at what cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.report import charts, style
from jaxclip.report.charts import Series
from jaxclip.report.classes import class_figures
from jaxclip.report.head import head
from jaxclip.report.pairs import Gallery, gallery_figures
from jaxclip.report.run import DIRECTIONS, RANKS, Evaluation, Run
from jaxclip.report.writing import count, escape, percent, title_of


def render(run: Run, gallery: Gallery | None) -> str:
    """The whole page as one HTML text."""
    sections = [
        _learning(run),
        _dynamics(run),
        _results(run),
        *_gallery(gallery),
        _throughput(run),
        _config(run.config),
    ]
    notes = "".join(f"<p>{escape(note)}</p>" for note in run.notes)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{style.CONTENT_POLICY}">'
        f'<title>{escape(run.name)} · jaxclip</title><link rel="icon" href="data:,"><style>{style.CSS}</style></head>'
        f"<body><main>{head(run)}{''.join(sections)}<footer>{notes}"
        "<p>Written by jaxclip from this run’s config.json, metrics.jsonl and evals.</p></footer></main>"
        f"<script>{style.SCRIPT}</script></body></html>\n"
    )


def _section(title: str, lead: str, content: str) -> str:
    if not content:
        return ""
    return f"<section><h2>{title}</h2>" + (f'<p class="lead">{lead}</p>' if lead else "") + f"{content}</section>"


def _learning(run: Run) -> str:
    loss = [
        Series("training", *run.column("loss"), colour=0, smoothed=True),
        Series("validation", *run.column("validation_loss"), colour=1, measured=True),
    ]
    spoilt = int((~np.isfinite(loss[0].values)).sum())
    note = f"Not a finite number at {count(spoilt, 'logged step')}." if spoilt else ""
    figures = charts.line_chart("Loss", loss, note=note)
    accuracy = [Series("in-batch, training", *run.column("batch_accuracy"), colour=0, smoothed=True)]
    for colour, (dataset, series) in enumerate(_over_steps(run, {"acc1": "top-1"}).items(), start=1):
        accuracy += [dataclasses.replace(one, name=title_of(dataset), colour=colour) for one in series]
    title = "Accuracy" if len(accuracy) > 1 else "In-batch accuracy"
    figures += charts.line_chart(title, accuracy, include=(0, 1), fractions=True)
    for direction, words in DIRECTIONS.items():
        recalls = {f"{direction}_recall@{rank}": f"R@{rank}" for rank in RANKS}
        for dataset, series in _over_steps(run, recalls).items():
            if max(len(one.steps) for one in series) > 1:
                figures += charts.line_chart(f"{title_of(dataset)}, {words}", series, include=(0, 1), fractions=True)
    lead = "Thin lines are logged values, thick ones their running mean; dots are measured on held-out data."
    return _section("Learning", lead, f'<div class="charts">{figures}</div>' if figures else "")


def _over_steps(run: Run, metrics: dict[str, str]) -> dict[str, list[Series]]:
    """For each dataset a curve per metric over the evaluated steps, named as the metrics' values say."""
    curves: dict[str, list[Series]] = {}
    for dataset in sorted({evaluation.dataset for evaluation in run.evaluations}):
        for colour, (metric, name) in enumerate(metrics.items()):
            measured = [one for one in run.evaluations if one.dataset == dataset and metric in one.metrics]
            if measured:
                steps = np.array([one.step for one in measured], dtype=np.float64)
                values = np.array([one.metrics[metric] for one in measured])
                curves.setdefault(dataset, []).append(Series(name, steps, values, colour=colour, measured=True))
    return curves


def _dynamics(run: Run) -> str:
    parts = (
        ("Learning rate", "learning_rate", (0,)),
        ("Logit scale", "logit_scale", ()),
        ("Gradient norm", "grad_norm", (0,)),
    )
    figures = "".join(
        charts.line_chart(
            title, [Series(title.lower(), *run.column(key), smoothed=key == "grad_norm")], include=include, small=True
        )
        for title, key, include in parts
    )
    return _section("Optimization", "", f'<div class="charts three">{figures}</div>' if figures else "")


def _results(run: Run) -> str:
    evaluations = run.final_evaluations()
    classification = [one for one in evaluations if "acc1" in one.metrics]
    columns = {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "mean per class"}
    tables = _table("Zero-shot classification", classification, {"": columns})
    recalls = {
        words: {f"{direction}_recall@{rank}": f"R@{rank}" for rank in RANKS} for direction, words in DIRECTIONS.items()
    }
    retrieval = [one for one in evaluations if any("recall@" in name for name in one.metrics)]
    tables += _table("Retrieval", retrieval, recalls)
    content = _section("Evaluation", "", tables)
    return content + _section("Accuracy per class", "", class_figures(classification))


def _table(title: str, evaluations: Sequence[Evaluation], groups: dict[str, dict[str, str]]) -> str:
    """A table of metrics: for each evaluation one row per group of columns, the group named where there are several."""
    if not evaluations:
        return ""
    heads = "".join(f'<th scope="col">{name}</th>' for name in next(iter(groups.values())).values())
    body = ""
    for evaluation in evaluations:
        for group, columns in groups.items():
            cells = "".join(_measure(evaluation.metrics.get(name)) for name in columns)
            words = f" <small>{group}</small>" if group else ""
            name = f'<th scope="row">{escape(title_of(evaluation.dataset))}{words}</th>'
            body += f"<tr>{name}{cells}<td>{evaluation.step:,}</td></tr>"
    return (
        f'<div class="box"><table class="results"><thead><tr><th scope="col">{title}</th>{heads}'
        f'<th scope="col">step</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _measure(value: float | None) -> str:
    if value is None:
        return "<td>\N{EM DASH}</td>"
    return f'<td>{percent(value)}<span class="bar"><i style="width:{100 * value:.1f}%"></i></span></td>'


def _gallery(gallery: Gallery | None) -> list[str]:
    figures = gallery_figures(gallery) if gallery else {}
    if not gallery or not figures:
        return []
    size = f"{len(gallery.captions):,} validation pairs"
    return [
        _section(
            "Similarity",
            f"Cosine of picture and caption for pairs taken at even distances from {size}. "
            "A model that tells them apart is darkest on the outlined diagonal.",
            figures["matrix"],
        ),
        _section(
            "From caption to picture",
            f"The most similar of {len(gallery.captions):,} pictures, best first. "
            "✓ marks a picture the caption was written for.",
            figures["pictures"],
        ),
        _section(
            "From picture to caption",
            "The most similar distinct captions. Bars start at a cosine of 0; ✓ marks the picture’s own caption.",
            f'<div class="answers">{figures["captions"]}</div>',
        ),
    ]


def _throughput(run: Run) -> str:
    figures = charts.line_chart(
        "Images per second",
        [Series("images per second", *run.column("images_per_second"), smoothed=True)],
        include=(0,),
    )
    wait = Series("waiting for data", *run.column("data_wait"), colour=1, smoothed=True)
    figures += charts.line_chart("Time waiting for data", [wait], include=(0, 0.1), fractions=True)
    return _section("Throughput", "", f'<div class="charts">{figures}</div>' if figures else "")


def _config(config: dict[str, Any]) -> str:
    pairs = _flat(config, "")
    if not pairs:
        return ""
    rows = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in pairs)
    return (
        f"<section><h2>Configuration</h2><details><summary>{count(len(pairs), 'key')}</summary>"
        f'<div class="box"><table class="config"><tbody>{rows}</tbody></table></div></details></section>'
    )


def _flat(content: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    """Nested keys joined by dots, each with its value as JSON but for text, which stands for itself."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs
