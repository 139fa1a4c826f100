"""The page a person opens after a training run: one self-contained `report.html` in the workdir.

`run` reads what the run left in its workdir, `head` writes the summary and the headline numbers, `charts` draws
curves, `classes` shows the accuracy of each class, `pairs` what the model makes of validation pictures and
captions; `page` puts them in order, `style` holds the page's look, `writing` how numbers are written. The page
asks nothing of the network and works from file://.
"""

from __future__ import annotations

import pathlib

from jaxclip.io import atomic_write
from jaxclip.report import page
from jaxclip.report.pairs import Gallery
from jaxclip.report.run import read_run

__all__ = ["Gallery", "write"]


def write(workdir: pathlib.Path, gallery: Gallery | None) -> pathlib.Path:
    """Writes `report.html` from what a run left in its workdir, and returns the page's path.

    It reads `config.json`, `metrics.jsonl` and `evals/STEP/*.json`; whatever of these is missing leaves its
    part of the page out. An older page is replaced in one move, so a killed run never leaves half of one.

    Args:
      workdir: the folder of a run; its name is the page's title.
      gallery: pictures and captions of the validation set with their similarities, or None for a page
        without them.

    Raises:
      UserError: there is no folder of that name.
    """
    path = workdir / "report.html"
    text = page.render(read_run(workdir), gallery)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
    return path
