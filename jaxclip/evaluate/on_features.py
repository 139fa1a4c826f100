"""What evaluations share that fit a classifier to the features of further images."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxclip import evaluate
from jaxclip.data.findings import preflight
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.labels import Labeled, classes_of, labeled, outside
from jaxclip.evaluate.prompts.choice import Prompts


class Further(NamedTuple):
    """Sources beside the evaluated one.

    Attributes:
      sources: by the key that names each, such as `train`.
      class_names: of all of them and the evaluated one; empty if they are not known.
      prompts: of a classifier by names, if the evaluation begins with one.
    """

    sources: dict[str, Source]
    class_names: tuple[str, ...]
    prompts: Prompts | None = None


@dataclasses.dataclass(frozen=True)
class FeatureEvaluator(evaluate.Evaluator):
    """The base of evaluations by features of the images of `data` and of others.

    Attributes:
      train: the source of the images that are learned from.
      function: of the model, that gives the features.
      tags: whether tags count as classes, and not a label alone.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    function: ClassVar[str] = "features"
    tags: ClassVar[bool] = False

    train: str

    def further(self) -> dict[str, str]:
        """The sources beside `data` by their keys."""
        return {"train": self.train}

    def prepare(self, source: Source, root: str) -> Further:
        """The further sources, of which a few records are looked at.

        Raises:
          UserError: one cannot be read or used, or has other classes than `data`.
        """
        names = tuple(source.class_names)
        opened: dict[str, Source] = {}
        for key, where in self.further().items():
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
        prepared = Further(opened, names)
        for key, one in opened.items():
            preflight(one, key, lambda record: self.lacks(record, prepared))
        return prepared

    def lacks(self, record: Record, prepared: Further) -> str:
        """Why a record cannot be evaluated.

        Raises:
          UserError: a class of it lies outside those of the source.
        """
        classes = classes_of(record.label, record.tags if self.tags else None)
        wrong = outside(classes or (), prepared.class_names)
        if wrong:
            raise UserError(f"{wrong}, in {record.key}")
        return ("no class label or tags" if self.tags else "no class label") if classes is None else ""

    def features(
        self, encoder: Encoder, variables: Any, source: Source, prepared: Further, skips: SkipLog, where: str
    ) -> tuple[Float[np.ndarray, "images width"], Labeled]:
        """The features of the images of `source` whose classes are known, float32; `where` is its key.

        Images with a class outside the source's are counted in `skips`.

        Raises:
          UserError: there is no such image, or the features are not finite.
        """
        embedded = encoder.source(variables, source, skips, function=self.function)
        if not self.tags:
            embedded = dataclasses.replace(embedded, tags=[None] * len(embedded.tags))
        known = labeled(embedded, prepared.class_names, skips, where)
        rows = np.asarray(embedded.outputs[known.rows], np.float32)
        if not np.isfinite(rows).all():
            raise UserError(f"{where}: the model's features have numbers that are not finite")
        return rows, known
