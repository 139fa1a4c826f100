"""CLIP_benchmark's folders of webdataset shards (clip_benchmark/datasets/builder.py, build_wds_dataset)."""

from __future__ import annotations

import dataclasses
import posixpath

from jaxclip.data.record import Skip
from jaxclip.data.sources.single_file import read_caption
from jaxclip.errors import UserError

_COUNT = "nshards.txt"


@dataclasses.dataclass(frozen=True)
class BenchmarkFolder:
    """A split of a data set.

    Attributes:
      shards: the pattern of its tars.
      class_names: the lines of classnames.txt; empty if there is none.
      templates: the lines of zeroshot_classification_templates.txt, phrases with a `{c}`; empty if there is none.
    """

    shards: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


def find(path: str) -> BenchmarkFolder | None:
    """The split at a path, or the split `test` of the data set at a path; None if there is none of the form.

    Args:
      path: of a folder, local or remote; that of a split holds nshards.txt and the tars, and the one above it the other
        files.

    Raises:
      UserError: nshards.txt holds no number.
    """
    path = path.rstrip("/")
    for split in (path, f"{path}/test"):
        count = read_caption(f"{split}/{_COUNT}", "")
        if isinstance(count, Skip):
            continue
        if not (count.isdecimal() and len(count) < 10 and int(count)):
            raise UserError(f"{split}/{_COUNT} must hold the number of tars, and holds {count[:80]!r}")
        above = posixpath.dirname(split)
        return BenchmarkFolder(
            f"{split}/{{0..{int(count) - 1}}}.tar",
            _lines(f"{above}/classnames.txt"),
            tuple(filter(None, _lines(f"{above}/zeroshot_classification_templates.txt"))),
        )
    return None


def _lines(path: str) -> tuple[str, ...]:
    """The lines of a text file, empty ones within it too, because labels count them; none if it cannot be read."""
    text = read_caption(path, "")
    return () if isinstance(text, Skip) else tuple(line.strip() for line in text.splitlines())
