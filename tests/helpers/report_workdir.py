"""Workdirs of runs that never happened, and their report, parsed."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re

import numpy as np

from jaxclip.report import Gallery, write

HOSTILE = "<script>alert(1)</script> \" onload='x' & <img src=http://example.com/x.png>"
COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "pink", "brown", "cyan"]
SHAPES = ["circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent"]
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
UNSEEN = CLASSES[::5]
CONFIG = {
    "seed": 0,
    "steps": 600,
    "batch_size": 128,
    "data": {"train": "shapes", "eval": "shapes", "caption_templates": ["{}", "a photo of a {}"]},
    "method": {"name": "clip", "image": {"layers": 4, "width": 128}},
    "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.98]},
}
CHARTS = {"In-batch accuracy": ("batch_accuracy",), "Parts of the loss": ("itc", "itm")}


def metric_rows(count: int = 60, every: int = 10) -> list[dict]:
    """Plausible curves of a run that learns, logged at every tenth step and validated at every hundredth."""
    noise = np.random.default_rng(0).normal(size=(count, 4))
    rows = []
    for index in range(count):
        step, done = (index + 1) * every, (index + 1) / count
        row = {
            "step": step,
            "loss": 0.4 + 4.4 * np.exp(-4 * done) + 0.1 * noise[index, 0],
            "learning_rate": 1e-3 * min(10 * done, 0.5 * (1 + np.cos(np.pi * done))),
            "grad_norm": 1.5 + abs(noise[index, 1]),
            "logit_scale": 14.3 + 30 * done,
            "batch_accuracy": float(np.clip(0.9 * (1 - np.exp(-4 * done)) + 0.02 * noise[index, 2], 0, 1)),
            "images_per_second": 800 + 20 * noise[index, 3],
            "data_wait": 0.02,
            "itc": 0.3 + 2 * np.exp(-4 * done),
            "itm": 0.1 + 2.4 * np.exp(-4 * done),
            "skipped": 0,
            "not_a_number": "ignored",
        }
        if step % 100 == 0:
            row |= {f"validation_{key}": row[key] + 0.1 for key in ("loss", "itc", "logit_scale")}
        rows.append(row)
    return rows


def write_metrics(workdir: pathlib.Path, rows: list[dict], ending: str = "") -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + ending)


def write_evaluation(workdir: pathlib.Path, step: int, dataset: str, metrics: dict, **more: object) -> None:
    folder = workdir / "evals" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "model": "clip", "pretrained": "run", "metrics": metrics, "language": "en", **more}
    (folder / f"{re.sub('[^a-z0-9]+', '_', dataset)[-60:]}.json").write_text(json.dumps(content))


def write_classification(workdir: pathlib.Path, step: int, dataset: str, accuracy: dict[str, float], **more) -> None:
    top = float(np.mean(list(accuracy.values())))
    metrics = {"acc1": top, "acc5": min(1.0, top + 0.1), "mean_per_class_recall": top}
    table = {"title": "Zero-shot classification", "columns": ["top-1", "top-5", "mean per class"]}
    table |= {"rows": {"": list(metrics.values())}, "fractions": True}
    shown = {"headline": [f"{top:.1%}", "zero-shot top-1\nchance 1.2%"], "tables": [table]}
    more = shown | {"classnames": list(accuracy), "per_class_recall": accuracy, **more}
    write_evaluation(workdir, step, dataset, metrics, task="zeroshot_classification", **more)


def write_retrieval(workdir: pathlib.Path, step: int, dataset: str, found: float) -> None:
    metrics = {
        f"{direction}_retrieval_recall@{rank}": min(1.0, found * scale)
        for direction in ("image", "text")
        for rank, scale in ((1, 1), (5, 2), (10, 2.5))
    }
    values = list(metrics.values())
    rows = {"caption → image": values[:3], "image → caption": values[3:]}
    table = {"title": "Retrieval", "columns": ["R@1", "R@5", "R@10"], "rows": rows, "fractions": True}
    headline = [f"{found:.1%} R@1", "caption → image"]
    write_evaluation(workdir, step, dataset, metrics, task="zeroshot_retrieval", headline=headline, tables=[table])


def make_gallery(count: int = 24, captions: list[str] | None = None) -> Gallery:
    """Colored squares; each image is most like its own caption, and next most like its neighbors'."""
    random = np.random.default_rng(1)
    images = np.broadcast_to(random.integers(0, 255, (count, 1, 1, 3)), (count, 32, 32, 3)).astype(np.uint8)
    distance = np.abs(np.arange(count)[:, None] - np.arange(count)[None, :])
    similarity = (0.4 - 0.02 * distance).astype(np.float32)
    return Gallery(images, captions or [f"an image of thing {index}" for index in range(count)], similarity)


class Page(html.parser.HTMLParser):
    """A parsed page: its elements with attributes, its text, and whether what it opens it closes."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (not kind or kind in (attributes.get("class") or "").split())
        ]

    @property
    def headings(self) -> list[str]:
        return re.findall("<h2>(.*?)</h2>", self.source)


def page_of(workdir: pathlib.Path, gallery: Gallery | None = None) -> Page:
    path = write(workdir, gallery, CHARTS)
    assert path == workdir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open, f"left open: {page.open}"
    for path_element in page.all("path"):
        assert "nan" not in (path_element["d"] or "") and "inf" not in (path_element["d"] or "")
    return page
