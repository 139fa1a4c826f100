"""Sheet of what a recipe gives its model, one HTML file without scripts."""

from __future__ import annotations

import statistics

import numpy as np
from PIL import Image

from jaxclip import inputs
from jaxclip.data.check.page import data_url, escape, page
from jaxclip.data.check.recipe_sample import Crop, DrawnRecord, Sample, Tokens, normalized


def table(sample: Sample) -> list[tuple[str, str]]:
    """Lines of (name, value): the inputs, with the mean and deviation of their pixels or their numbers of tokens."""
    lines = [("records", f"{len(sample.records)}, each as drawn in the first {sample.epochs} epochs")]
    for reason, number in sample.skips.counts.most_common():
        lines.append(("skipped", f"{number:,} x {reason}, such as {sample.skips.example(reason)}"))
    for name, kind in sample.inputs.items():
        match kind:
            case inputs.Image(size=size):
                training = [crop for record in sample.records for crop in record.training[name]]
                evaluation = [record.evaluation[name] for record in sample.records]
                lines += [
                    (name, f"{size} x {size}{f', view {kind.view}' if kind.view else ''}"),
                    ("in training", _moments(training, kind)),
                    ("in evaluation", _moments(evaluation, kind)),
                ]
            case inputs.Text(length=length) | inputs.Answers(length=length):
                counts = [len(text.pieces) for record in sample.records for text in record.texts[name]]
                full = sum(count == length for count in counts)
                lines.append(
                    (
                        name,
                        f"{len(counts)} different texts, median {statistics.median_low(counts)} tokens; "
                        f"{full} fill all {length}, where a longer text is cut",
                    )
                )
    return lines


def _moments(crops: list[Crop], kind: inputs.Image) -> str:
    values = normalized(np.stack([crop.pixels for crop in crops]), kind)
    moments = zip(values.mean((0, 1, 2)), values.std((0, 1, 2)), strict=True)
    red, green, blue = (f"{mean:.2f} ± {std:.2f}" for mean, std in moments)
    return f"pixels have mean ± deviation {red} (red), {green} (green), {blue} (blue)"


def sheet(title: str, sample: Sample) -> str:
    """The sheet as HTML.

    For each record and each of its views: the source, the training crop of each epoch, and the evaluation crop, with
    the mean and deviation of the pixels as the model takes them; and the texts with their tokens.

    Args:
      title: of the page.
      sample: what it shows.
    """
    return page(title, table(sample), "".join(_record(record, sample) for record in sample.records))


def _record(record: DrawnRecord, sample: Sample) -> str:
    numbers = sorted({kind.number for kind in sample.inputs.values() if isinstance(kind, inputs.Image)})
    parts = []
    for name, kind in sample.inputs.items():
        if isinstance(kind, inputs.Image):
            image, (width, height) = record.images[numbers.index(kind.number)]
            figures = [_figure(image, "source", f"{width} × {height}")]
            for epoch, crop in enumerate(record.training[name], start=1):
                figures.append(_crop(crop, f"training, epoch {epoch}"))
            figures.append(_crop(record.evaluation[name], "evaluation"))
            parts.append(f"<h3>{escape(name)}</h3><div class=crops>{''.join(figures)}</div>")
        elif name in record.texts:
            parts.append(f"<h3>{escape(name)}</h3>{''.join(map(_text, record.texts[name]))}")
        else:
            parts.append(f"<h3>{escape(name)}</h3><p>{escape(record.values[name])}</p>")
    return f"<section><h2>{escape(record.key)}</h2>{''.join(parts)}</section>"


def _crop(crop: Crop, name: str) -> str:
    return _figure(Image.fromarray(crop.pixels), name, f"mean {crop.mean:.2f}, deviation {crop.deviation:.2f}")


def _figure(image: Image.Image, name: str, below: str) -> str:
    return (
        f'<figure><img src="{data_url(image)}" alt="{escape(name)}">'
        f"<figcaption>{escape(name)}<small>{escape(below)}</small></figcaption></figure>"
    )


def _text(text: Tokens) -> str:
    pieces = "".join(f'<span title="{token}">{escape(piece) or "&nbsp;"}</span>' for token, piece in text.pieces)
    more = f", {text.name}" if text.name else ""
    return (
        f"<p>{escape(text.text)}</p><div class=tokens>{pieces}</div>"
        f"<small>{len(text.pieces)} of {text.length} tokens{escape(more)}</small>"
    )
