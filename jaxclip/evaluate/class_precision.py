"""Precision of retrieval among labeled images, by text or by image (ConVIRT, Zhang et al. 2020, section 4.3)."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxclip import evaluate
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.data.storage import resolve
from jaxclip.encoder import EmbeddedSet, Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.labels import unit_rows

KS = (5, 10, 50)
_KINDS = {"text": "text → image", "image": "image → image"}


class Queries(NamedTuple):
    """What is looked for: texts with the label that each asks for, and a source of labeled images; None for none."""

    texts: list[str]
    labels: list[int]
    images: Source | None


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """How many of the images that are most similar to a query have its label; `data` are the labeled images.

    Texts are compared in the shared space, images by the image tower's own features, as in the paper. An image does not
    find itself, so that the same set may be `data` and `image_queries`.

    Attributes:
      queries: a csv file with the columns `text` and `label`; empty for no texts.
      image_queries: a source of images with labels; empty for no images.
    """

    needs: ClassVar[tuple[str, ...]] = ("encode_image", "encode_text", "features")

    queries: str = ""
    image_queries: str = ""

    def __post_init__(self):
        if not self.queries and not self.image_queries:
            raise UserError("queries is missing: give a csv of texts and labels, or image_queries=SOURCE")

    def prepare(self, source: Source, root: str) -> Queries:
        """The queries.

        Raises:
          UserError: they cannot be read.
        """
        texts, labels = _read(resolve(self.queries, root)) if self.queries else ([], [])
        try:
            images = open_source(self.image_queries, root=root) if self.image_queries else None
        except UserError as error:
            raise UserError(f"image_queries: {error}") from None
        return Queries(texts, labels, images)

    def lacks(self, record: Record, prepared: Queries) -> str:
        """Why a record cannot be evaluated."""
        return "no class label" if record.label is None else ""

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Queries
    ) -> evaluate.Result:
        """`text_precision@k` and `image_precision@k` as fractions; None where there are fewer images than k.

        Images without a label are left out.

        Raises:
          UserError: no image has a label.
        """
        metrics: dict[str, float | None] = {}
        found = {}
        if prepared.texts:
            images, labels, _ = _labeled(encoder.source(variables, source, skips), skips)
            texts = encoder.texts(variables, prepared.texts)
            found["text"] = precisions(texts @ images.T, np.array(prepared.labels), labels)
        if prepared.images is not None:
            images, labels, digests = _labeled(encoder.source(variables, source, skips, function="features"), skips)
            queries, asked, asking = _labeled(
                encoder.source(variables, prepared.images, skips, function="features"), skips
            )
            itself = asking[:, None] == digests
            found["image"] = precisions(
                np.where(itself, -np.inf, unit_rows(queries) @ unit_rows(images).T), asked, labels
            )
        for kind, values in found.items():
            metrics |= {f"{kind}_precision@{k}": value for k, value in values.items()}
        first = "text" if "text" in found else "image"
        shown = "/".join("-" if value is None else f"{100 * value:.1f}" for value in found[first].values())
        return evaluate.Result(
            metrics=metrics,
            summary=f"{_KINDS[first]} Prec@{'/'.join(map(str, KS))} {shown}",
            tables=(
                evaluate.Table(
                    "Precision of retrieval by class",
                    tuple(f"Prec@{k}" for k in KS),
                    {_KINDS[kind]: tuple(values.values()) for kind, values in found.items()},
                    fractions=True,
                ),
            ),
        )


def precisions(
    similarities: Float[np.ndarray, "queries images"],
    query_labels: Int[np.ndarray, "queries"],
    image_labels: Int[np.ndarray, "images"],
) -> dict[int, float | None]:
    """For each k of `KS`, the share of the k most similar images that have the query's label, over all queries.

    Images of equal similarity count in their order. One of similarity -inf is never found, so that None is given for a
    k above the least number of images that a query may find.

    >>> precisions(np.array([[0.9, 0.8, 0.7, 0.6, 0.5]]), np.array([1]), np.array([1, 1, 0, 0, 1]))[5]
    0.6
    """
    order = np.argsort(-similarities, axis=1, kind="stable")[:, : max(KS)]
    relevant = image_labels[order] == query_labels[:, None]
    fewest = np.isfinite(similarities).sum(axis=1).min()
    return {k: float(relevant[:, :k].mean()) if k <= fewest else None for k in KS}


def _labeled(embedded: EmbeddedSet, skips: SkipLog) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The vectors of the images that have a label, float32 [n, width], the labels, and the digests of the images."""
    rows = [row for row, label in enumerate(embedded.labels) if label is not None]
    if not rows:
        unlabeled = "no image has a class label (a .cls member or a label column)"
        raise UserError(f"no record can be used: {skips}" if skips.total else unlabeled)
    labels, digests = (np.array([values[row] for row in rows]) for values in (embedded.labels, embedded.digests))
    return np.asarray(embedded.outputs[rows], np.float32), labels, digests


def _read(path: str) -> tuple[list[str], list[int]]:
    """The texts and labels of a csv file."""
    try:
        with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"queries: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    wrong = next((number for number, row in enumerate(rows, 2) if not _is_query(row)), None)
    if not rows or wrong is not None:
        where = f"line {wrong} of {path}" if wrong else path
        raise UserError(f"queries: {where} must have a text and a label, 0, 1, ..., under the header text,label")
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]


def _is_query(row: dict[str, Any]) -> bool:
    label = row.get("label")
    return bool(row.get("text")) and isinstance(label, str) and label.isdecimal() and len(label) < 10
