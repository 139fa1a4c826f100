"""The classes of labeled images: one label of each, or several tags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxclip.data.findings import preflight
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import EmbeddedSet, Encoder
from jaxclip.errors import UserError


class FurtherSources(NamedTuple):
    """Sources beside the evaluated one, such as the images that a classifier is trained on.

    Attributes:
      sources: by the key that names each.
      class_names: of all of them; empty if they are not known.
    """

    sources: dict[str, Source]
    class_names: tuple[str, ...]


class Labeled(NamedTuple):
    """Images whose classes are known.

    Attributes:
      rows: of the embedded set.
      classes: the indices of each image's classes.
      single: whether these are labels, of which each image has one.
    """

    rows: list[int]
    classes: list[tuple[int, ...]]
    single: bool


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
    return Labeled(rows, found, single=all(embedded.tags[row] is None for row in rows))


def lacks(record: Record, class_names: Sequence[str], tags: bool) -> str:
    """Why a record has no classes; empty if it has some.

    Args:
      record: one.
      class_names: the names of the classes; empty if they are not known.
      tags: whether tags count as classes, and not a label alone.

    Raises:
      UserError: a class lies outside the names.
    """
    classes = classes_of(record.label, record.tags if tags else None)
    wrong = outside(classes or (), class_names)
    if wrong:
        raise UserError(f"{wrong}, in {record.key}")
    return ("no class label or tags" if tags else "no class label") if classes is None else ""


def open_further(keys: Mapping[str, str], source: Source, root: str, tags: bool) -> FurtherSources:
    """Opens sources that must have the classes of the evaluated one, and looks at a few of their records.

    Args:
      keys: the sources by the key that names each, which begins a message.
      source: the one that is evaluated.
      root: the folder that relative paths start from.
      tags: whether tags count as classes, and not a label alone.

    Raises:
      UserError: one cannot be read or used, or has other classes.
    """
    names = tuple(source.class_names)
    opened: dict[str, Source] = {}
    for key, where in keys.items():
        try:
            opened[key] = open_source(where, root=root)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        theirs = tuple(opened[key].class_names)
        if names and theirs and names != theirs:
            raise UserError(
                f"{key}: its {len(theirs)} classes ({', '.join(theirs[:3])}, ...) are not the {len(names)} of data "
                f"({', '.join(names[:3])}, ...); choose sources with the same classes in the same order"
            )
        names = names or theirs
    for key, one in opened.items():
        preflight(one, key, lambda record: lacks(record, names, tags))
    return FurtherSources(opened, names)


def labeled_features(
    encoder: Encoder,
    variables: Any,
    source: Source,
    class_names: Sequence[str],
    skips: SkipLog,
    where: str,
    tags: bool,
) -> tuple[Float[np.ndarray, "images width"], Labeled]:
    """The features of the images whose classes are known, float32.

    Raises:
      UserError: there is no such image, or the features are not finite.
    """
    embedded = encoder.source(variables, source, skips, function="features")
    if not tags:
        embedded = dataclasses.replace(embedded, tags=[None] * len(embedded.tags))
    known = labeled(embedded, class_names, skips, where)
    rows = np.asarray(embedded.outputs[known.rows], np.float32)
    if not np.isfinite(rows).all():
        raise UserError(f"{where}: the model's features have numbers that are not finite")
    return rows, known


def unit_rows(rows: Float[np.ndarray, "images width"]) -> Float[np.ndarray, "images width"]:
    """The rows at unit length; one of zeros stays so."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
