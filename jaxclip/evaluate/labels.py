"""The classes of labeled images: one label of each, or several tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxclip.data.skips import SkipLog
from jaxclip.encoder import EmbeddedSet
from jaxclip.errors import UserError
from jaxclip.evaluate.evaluator import examples_digest


class Labeled(NamedTuple):
    """Images whose classes are known.

    Attributes:
      rows: of the embedded set.
      classes: the indices of each image's classes.
      single: whether these are labels, of which each image has one.
      digests: of the images.
    """

    rows: list[int]
    classes: list[tuple[int, ...]]
    single: bool
    digests: list[str]

    @property
    def examples(self) -> str:
        """The digest of the images with their classes; see `jaxclip.evaluate.examples_digest`."""
        return examples_digest([*zip(self.digests, self.classes, strict=True)])


def classes_of(label: int | None, tags: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The classes of an image: its tags, several or none, or else its label; None if they are not known."""
    if tags is not None:
        return tags
    return None if label is None else (label,)


def outside(classes: Sequence[int], class_names: Sequence[str]) -> str:
    """What is wrong with the classes of an image if one lies outside the names; without names, any from 0 will do."""
    wrong = next((index for index in classes if index < 0 or class_names and index >= len(class_names)), None)
    if wrong is None:
        return ""
    return f"label {wrong} is outside the {len(class_names)} classes" if class_names else f"label {wrong} is negative"


def labeled(embedded: EmbeddedSet, class_names: Sequence[str], skips: SkipLog, where: str = "") -> Labeled:
    """The images whose classes are known. Those with a class outside the names are counted in `skips`.

    Args:
      embedded: the images.
      class_names: the names of the classes; empty if they are not known.
      skips: where such images are counted.
      where: the key that the images are from, for messages.

    Raises:
      UserError: there is no such image.
    """
    rows, found = [], []
    for row, (label, tags) in enumerate(zip(embedded.labels, embedded.tags, strict=True)):
        classes = classes_of(label, tags)
        wrong = outside(classes or (), class_names)
        if wrong:
            skips.add(wrong, f"record {embedded.ids[row]}" + (f" of {where}" if where else ""))
        elif classes is not None:
            rows.append(row)
            found.append(classes)
    if not rows:
        reason = f"no record can be used: {skips}" if skips.total else "no image has a class label (a .cls member, a "
        reason += "" if skips.total else "label column) or tags"
        raise UserError(f"{where}: {reason}" if where else reason)
    single = all(embedded.tags[row] is None for row in rows)
    return Labeled(rows, found, single, [embedded.digests[row] for row in rows])


def unit_rows(rows: Float[np.ndarray, "images width"]) -> Float[np.ndarray, "images width"]:
    """The rows at unit length; one of zeros stays so."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
