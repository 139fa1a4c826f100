"""Zero-shot classification of corrupted images (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxclip import evaluate
from jaxclip.data.loader import examples
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Batch, Encoder, class_embeddings, gather
from jaxclip.errors import UserError
from jaxclip.evaluate import zeroshot_classification
from jaxclip.evaluate.classification_metrics import classified
from jaxclip.evaluate.corruptions import KINDS, STRENGTHS, corrupted
from jaxclip.evaluate.labels import outside
from jaxclip.evaluate.zeroshot_classification import Prompts, prompts_json


@dataclasses.dataclass(frozen=True)
class Evaluator(zeroshot_classification.Evaluator):
    """Accuracy over images that have a label each, as they are and under each kind and strength of corruption.

    Attributes:
      kinds: of corruption, of `jaxclip.evaluate.corruptions.KINDS`.
      strengths: of each kind, from 1 to 5.
      images: how many are classified at most, evenly spread over the data; 0 for all.
    """

    kinds: tuple[str, ...] = KINDS
    strengths: tuple[int, ...] = tuple(range(1, STRENGTHS + 1))
    images: int = 0

    def __post_init__(self):
        super().__post_init__()
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"kinds: {kind!r} is not a corruption; they are {', '.join(KINDS)}")
        wrong = next((strength for strength in self.strengths if not 1 <= strength <= STRENGTHS), None)
        if wrong is not None:
            raise UserError(f"strengths: {wrong} is not from 1 to {STRENGTHS}")
        for key, values in {"kinds": self.kinds, "strengths": self.strengths}.items():
            if not values or len(set(values)) < len(values):
                raise UserError(f"{key}={values} must be at least one, and none twice")
        if self.images < 0:
            raise UserError(f"images={self.images} must be at least 1, or 0 for all")

    def lacks(self, record: Record, prepared: Prompts) -> str:
        """Why a record cannot be evaluated.

        Raises:
          UserError: its label lies outside the names, which then are not those of the data.
        """
        return super().lacks(dataclasses.replace(record, tags=None), prepared)

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Prompts
    ) -> evaluate.Result:
        """`acc1_clean`, `acc1_corrupted`, the mean over all kinds and strengths, `acc1_KIND`, the mean over the
        strengths of a kind, and `relative_robustness`, acc1_corrupted / acc1_clean, None if nothing is right.

        Every image is read once. What is random depends on its number in the data alone. Images without a label are
        left out, and those with one outside the names, which are counted in `skips`.

        Raises:
          UserError: no image has a label, or none can be read.
        """
        texts = class_embeddings(encoder, variables, prepared.classes, prepared.templates)
        count = min(self.images, len(source)) or len(source)
        ids = [number * len(source) // count for number in range(count)]
        cells = [(kind, strength) for kind in self.kinds for strength in self.strengths]
        right, total = np.zeros(1 + len(cells), np.int64), 0
        first: list[int] = []
        for batch in encoder.batches(source, skips, ids):
            rows, labels = _labels(batch, ids, prepared.classes, skips)
            images = encoder.on_devices(batch.images)
            seeds = np.zeros(len(batch.images), np.int32)
            seeds[batch.rows] = [ids[position] for position in batch.positions]
            placed = encoder.on_devices(seeds)
            for number, cell in enumerate([None, *cells]):
                version = images if cell is None else corrupted(encoder.mesh, images, placed, *cell)
                embedded = encoder.of_batch("encode_image", variables, version)
                right[number] += _right(encoder.own_rows(embedded)[rows], texts, labels)
            total += len(rows)
            first = first or [int(seeds[row]) for row in rows[:1]]
        parts = gather({"right": right.tolist(), "total": total, "first": first})
        total = sum(part["total"] for part in parts)
        if not total:
            unlabeled = "no image has a class label (a .cls member or a label column)"
            raise UserError(f"no record can be used: {skips}" if skips.total else unlabeled)
        clean, *shares = (np.sum([part["right"] for part in parts], axis=0) / total).tolist()
        table = np.reshape(shares, (len(self.kinds), len(self.strengths)))
        shown = min(number for part in parts for number in part["first"])
        return self._result(clean, table, prepared, total, self._examples(encoder, source, shown))

    def _result(
        self,
        clean: float,
        accuracies: Float[np.ndarray, "kinds strengths"],
        prompts: Prompts,
        images: int,
        shown: tuple[evaluate.Example, ...],
    ) -> evaluate.Result:
        mean = float(accuracies.mean())
        relative = mean / clean if clean else None
        means = {kind: float(row.mean()) for kind, row in zip(self.kinds, accuracies, strict=True)}
        by_strength = {
            kind: dict(zip(map(str, self.strengths), row.tolist(), strict=True))
            for kind, row in zip(self.kinds, accuracies, strict=True)
        }
        kept = "" if relative is None else f", {relative:.0%} of it kept"
        return evaluate.Result(
            metrics={"acc1_corrupted": mean, "acc1_clean": clean, "relative_robustness": relative}
            | {f"acc1_{kind}": value for kind, value in means.items()},
            summary=f"zero-shot accuracy {clean:.1%}, of corrupted images {mean:.1%}",
            headline=(f"{mean:.1%}", f"zero-shot top-1, corrupted\nclean {clean:.1%}{kept}"),
            tables=(
                evaluate.Table(
                    "Corruption robustness",
                    ("corrupted", "clean", "relative"),
                    {"": (mean, clean, relative)},
                    fractions=True,
                ),
                self._table(clean, means, by_strength),
            ),
            examples=shown,
            further={"acc1_by_strength": by_strength, "images": images} | prompts_json(prompts),
        )

    def _table(
        self, clean: float, means: Mapping[str, float], by_strength: Mapping[str, Mapping[str, float]]
    ) -> evaluate.Table:
        """A row for each kind, as text, since the report draws numbers over the steps."""
        return evaluate.Table(
            "Accuracy by corruption",
            ("mean", "clean", *(f"strength {strength}" for strength in self.strengths)),
            {
                kind.replace("_", " "): tuple(
                    f"{value:.1%}" for value in (means[kind], clean, *by_strength[kind].values())
                )
                for kind in self.kinds
            },
        )

    def _examples(self, encoder: Encoder, source: Source, number: int) -> tuple[evaluate.Example, ...]:
        """One image of the source under each kind, at the middle one of the strengths."""
        assert encoder.image is not None
        read = examples(source, [number], encoder.image.size, encoder.image.pixels, SkipLog())
        image = next(image for _, image, _ in read)
        assert image is not None
        strength = sorted(self.strengths)[len(self.strengths) // 2]
        share = encoder.share
        # Every process corrupts copies of the one image, and so needs nothing of the others.
        images = encoder.on_devices(np.broadcast_to(image, (share, *image.shape)))
        seeds = encoder.on_devices(np.full(share, number, np.int32))
        versions = {kind: corrupted(encoder.mesh, images, seeds, kind, strength) for kind in self.kinds}
        return (
            evaluate.Example(image, "clean"),
            *(
                evaluate.Example(
                    np.asarray(version.addressable_shards[0].data[0]), f"{kind.replace('_', ' ')} {strength}"
                )
                for kind, version in versions.items()
            ),
        )


def _labels(
    batch: Batch, ids: Sequence[int], classes: Sequence[str], skips: SkipLog
) -> tuple[list[int], Int[np.ndarray, "labeled"]]:
    """The rows of a batch whose label is one of the classes, and the labels; others are counted in `skips`."""
    rows, labels = [], []
    for row, position, record in zip(batch.rows, batch.positions, batch.records, strict=True):
        wrong = "" if record.label is None else outside((record.label,), classes)
        if wrong:
            skips.add(wrong, f"record {ids[position]}")
        elif record.label is not None:
            rows.append(row)
            labels.append(record.label)
    return rows, np.array(labels, np.int64)


def _right(
    images: Float[np.ndarray, "images width"],
    texts: Float[np.ndarray, "classes width"],
    labels: Int[np.ndarray, "images"],
) -> int:
    """How many images are classified as what they are."""
    return int((classified(images, texts, labels).ranks == 0).sum()) if len(images) else 0
