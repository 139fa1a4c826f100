"""The page of a training run: one self-contained `report.html` in the workdir.

`workdir` reads the run's records, `head` writes the summary and the headline figures, `charts` draws `curves`,
`results` shows what evaluations gave, `suites` their data sets as bars and `classes` the accuracy of each class;
`plots` draws `few_shot` probes and the robustness to `shifts`; `gallery` embeds validation images and captions and
`pairs` shows them. `page` puts them in order, `style` has the page's look, `writing` how numbers are written. The page
asks nothing of the network and works from file://. `python -m jaxclip.report` writes it anew.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from jaxclip.evaluate.robustness import Reference
from jaxclip.io import atomic_write
from jaxclip.report import page
from jaxclip.report.gallery import Gallery
from jaxclip.report.workdir import read_run

__all__ = ["Gallery", "write"]


def write(
    workdir: pathlib.Path,
    gallery: Gallery | None = None,
    charts: Mapping[str, Sequence[str]] | None = None,
    reference: Reference | None = None,
) -> pathlib.Path:
    """Writes `report.html` from the records of a run in its workdir, and returns the page's path.

    It reads `config.json`, `metrics.jsonl` and `evals/STEP/*.json`; if one of them is missing, so is its part of the
    page. An older page is replaced in one move, so a killed run never leaves half of one.

    Args:
      workdir: the folder of a run; its name is the page's title.
      gallery: images and captions of the validation set with their similarities; None for a page without them.
      charts: the method's own charts, `jaxclip.methods.Method.charts`: titles, and the metrics of each. A metric that
        is in none of them is drawn in a chart of its own.
      reference: models that the run's accuracies on shifted data are compared with.

    Raises:
      UserError: there is no folder of that name, or `reference` is given and nothing can be compared with it.
    """
    path = workdir / "report.html"
    text = page.render(read_run(workdir), gallery, charts or {}, reference)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
    return path
