"""Zero-shot classification with templates averaged in embedding space (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip import evaluate
from jaxclip.config import check_templates
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import benchmark_folder
from jaxclip.data.storage import resolve
from jaxclip.encoder import Encoder, class_embeddings
from jaxclip.errors import UserError
from jaxclip.evaluate.ranking import ranks, recalls


class Prompts(NamedTuple):
    """The names of the classes, and the phrases with a `{c}` that each is put into."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Accuracy over the labeled images of a data set.

    Attributes:
      classes: a file of the class names in the order of the labels, a JSON list or, if it ends in .txt, one a line;
        empty if the source knows them.
      templates: phrases with a `{c}` whose embeddings are averaged per class; empty for those of a folder in
        CLIP_benchmark's form, and "a photo of a {c}." for other data.
    """

    classes: str = ""
    templates: tuple[str, ...] = ()

    def __post_init__(self):
        check_templates("templates", self.templates)

    def prepare(self, source: Source, root: str) -> Prompts:
        """The names of the classes, and the phrases.

        Raises:
          UserError: the source does not know the names, or the file does not hold them; a phrase of the data has no
            place for a name.
        """
        classes = _class_names(resolve(self.classes, root)) if self.classes else tuple(source.class_names)
        if not classes:
            raise UserError(
                f"classes is missing: {self.data} does not say its class names; give a FILE.json, or a FILE.txt of one "
                "a line"
            )
        own = benchmark_folder.find(resolve(self.data.removeprefix("folder:"), root))
        templates = self.templates or (own.templates if own else ())
        check_templates("templates", templates)
        return Prompts(classes, templates or ("a photo of a {c}.",))

    def lacks(self, record: Record, prepared: Prompts) -> str:
        """Why a record cannot be evaluated.

        Raises:
          UserError: its label lies outside the classes, which then are not those of the data.
        """
        if record.label is not None and not 0 <= record.label < len(prepared.classes):
            raise UserError(
                f"{_outside(record.label, prepared.classes)}, in {record.key}: the classes are not those of the data"
            )
        return "no class label" if record.label is None else ""

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Prompts
    ) -> evaluate.Result:
        """CLIP_benchmark's metrics as fractions: `acc1`, `acc5`, `mean_per_class_recall`; acc5 is None below 5 classes.

        With them goes the recall of each class name that occurs. Images without a label are left out, and those whose
        label lies outside the classes, which are counted in `skips`.

        Raises:
          UserError: no image has a label, or none can be read.
        """
        classes = prepared.classes
        embedded = encoder.source(variables, source, skips)
        kept = []
        for row, label in enumerate(embedded.labels):
            if label is not None and 0 <= label < len(classes):
                kept.append(row)
            elif label is not None:
                skips.add(_outside(label, classes), f"record {embedded.ids[row]}")
        if not kept:
            unlabeled = "no image has a class label (a .cls member or a label column)"
            raise UserError(f"no record can be used: {skips}" if skips.total else unlabeled)
        labels = np.array([embedded.labels[row] for row in kept])
        texts = class_embeddings(encoder, variables, classes, prepared.templates)
        found = ranks(encoder.mesh, embedded.outputs[kept], texts, labels, np.arange(len(classes)))
        return self._result(found, labels, prepared)

    def _result(self, ranks: np.ndarray, labels: np.ndarray, prompts: Prompts) -> evaluate.Result:
        """The result for the rank of each image's class among all classes."""
        classes = prompts.classes
        per_label = {int(label): float(np.mean(ranks[labels == label] == 0)) for label in np.unique(labels)}
        # Two classes of a list may have the same name, and still are two classes.
        names = np.array(classes)[labels]
        per_name = {classes[label]: float(np.mean(ranks[names == classes[label]] == 0)) for label in per_label}
        accuracy = recalls(ranks, (1, 5))
        metrics = {
            "acc1": accuracy[1],
            "acc5": accuracy[5] if len(classes) >= 5 else None,
            "mean_per_class_recall": float(np.mean(list(per_label.values()))),
        }
        return evaluate.Result(
            metrics=metrics,
            summary=f"zero-shot accuracy {accuracy[1]:.1%} ({len(classes)} classes)",
            headline=(f"{accuracy[1]:.1%}", f"zero-shot top-1\nchance {1 / len(classes):.1%}"),
            tables=(
                evaluate.Table(
                    "Zero-shot classification",
                    ("top-1", "top-5", "mean per class"),
                    {"": tuple(metrics.values())},
                    fractions=True,
                ),
            ),
            further={
                "per_class_recall": per_name,
                "classnames": list(classes),
                "templates": list(prompts.templates),
            },
        )


def _class_names(path: str) -> tuple[str, ...]:
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        classes = text.strip().splitlines() if path.endswith(".txt") else json.loads(text)
    except FileNotFoundError:
        raise UserError(f"classes: no file {path}; it holds a JSON list of the class names") from None
    except OSError as error:
        raise UserError(f"classes: {path} cannot be read: {error.strerror}; give a FILE.json or a FILE.txt") from None
    except ValueError as error:
        raise UserError(
            f"classes: {path} is not JSON ({error}); one name a line is for a file that ends in .txt"
        ) from None
    if not isinstance(classes, list) or not classes or not all(isinstance(item, str) for item in classes):
        raise UserError(f"classes: {path} must hold a list of class names")
    return tuple(name.strip() for name in classes)


def _outside(label: int, classes: Sequence[str]) -> str:
    return f"label {label} is outside the {len(classes)} classes"
