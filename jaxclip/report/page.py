"""Composition of the report: summary and results, learning curves, images and captions, cost and configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.evaluate.robustness import Reference
from jaxclip.report import style
from jaxclip.report.charts import Series, line_chart
from jaxclip.report.classes import class_figures
from jaxclip.report.curves import further_figures, learning_figures
from jaxclip.report.few_shot import few_shot_figures
from jaxclip.report.gallery import Gallery
from jaxclip.report.head import head
from jaxclip.report.pairs import gallery_figures
from jaxclip.report.results import example_figures, result_tables
from jaxclip.report.shifts import shift_figures
from jaxclip.report.suites import suite_figures
from jaxclip.report.workdir import EvaluationRecord, RunRecord
from jaxclip.report.writing import count, escape


def render(
    run: RunRecord, gallery: Gallery | None, charts: Mapping[str, Sequence[str]], reference: Reference | None = None
) -> str:
    """The whole page as one HTML text; see `jaxclip.report.write`."""
    learning, further = learning_figures(run, charts), further_figures(run, charts)
    final = run.final_evaluations()
    few_shot = few_shot_figures(final)
    sections = [
        _section(
            "Learning",
            "Thin lines are logged values, thick ones their running mean; dots are measured at validation.",
            f'<div class="charts">{learning}</div>' if learning else "",
        ),
        _section("Optimization", "", f'<div class="charts three">{further}</div>' if further else ""),
        _section("Evaluation", "", suite_figures(final) + result_tables(final)),
        _section(
            "Learning from few images",
            "Accuracy of linear probes by the number of images of each class that they learned from.",
            f'<div class="charts">{few_shot}</div>' if few_shot else "",
        ),
        _section(
            "Effective robustness",
            "Accuracy on shifted data over that on the original, on logit axes. Effective robustness is the height "
            "above the line of the reference models, in percentage points.",
            shift_figures(run, reference) if reference else "",
        ),
        _section("Accuracy per class", "", class_figures(final)),
        _section(
            "Examples",
            "Right and wrong answers of which the model is surest; of retrieval, captions that find their image first, "
            "and those that find it last."
            if _are_marked(final)
            else "",
            example_figures(final),
        ),
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


def _are_marked(evaluations: Sequence[EvaluationRecord]) -> bool:
    return any(example.right is not None for evaluation in evaluations for example in evaluation.examples)


def _section(title: str, lead: str, content: str) -> str:
    if not content:
        return ""
    return f"<section><h2>{title}</h2>" + (f'<p class="lead">{lead}</p>' if lead else "") + f"{content}</section>"


def _gallery(gallery: Gallery | None) -> list[str]:
    figures = gallery_figures(gallery) if gallery else {}
    if not gallery or not figures:
        return []
    size = f"{len(gallery.captions):,} validation pairs"
    return [
        _section(
            "Similarity",
            f"Cosine of image and caption for pairs taken at even distances from {size}. "
            "A model that tells them apart is darkest on the outlined diagonal.",
            figures["matrix"],
        ),
        _section(
            "From caption to image",
            f"The most similar of {len(gallery.captions):,} images, best first. "
            "✓ marks an image the caption was written for.",
            figures["images"],
        ),
        _section(
            "From image to caption",
            "The most similar distinct captions. Bars start at a cosine of 0; ✓ marks the image’s own caption.",
            f'<div class="answers">{figures["captions"]}</div>',
        ),
    ]


def _throughput(run: RunRecord) -> str:
    figures = line_chart(
        "Images per second",
        [Series("images per second", *run.column("images_per_second"), smoothed=True)],
        include=(0,),
    )
    wait = Series("waiting for data", *run.column("data_wait"), color=1, smoothed=True)
    figures += line_chart("Time waiting for data", [wait], include=(0, 0.1), fractions=True)
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
    """Nested keys joined by dots, each with its value as JSON but for text, which is shown as it is."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs
