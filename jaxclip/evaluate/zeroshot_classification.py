"""Zero-shot classification with templates averaged in embedding space (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxclip import evaluate, methods
from jaxclip.config import check_templates
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder, class_embeddings
from jaxclip.errors import UserError
from jaxclip.evaluate.classification_metrics import (
    Answers,
    Confusion,
    average_precision,
    calibration_error,
    classified,
    eleven_point_precision,
    roc_auc,
    worst_confusions,
)
from jaxclip.evaluate.labels import classes_of, labeled, outside
from jaxclip.evaluate.prompts.choice import Prompts, choose
from jaxclip.evaluate.ranking import recalls
from jaxclip.evaluate.shown import Shown, read_back

_CONFUSIONS = 8  # in the report's table
_PER_CONFUSION = 2  # images of it
_SHOWN = 12  # images of each kind: right, wrong, and those behind confusions


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Accuracy over the images of a data set that have a label each, or average precision if they have tags.

    Attributes:
      classes: a file of the class names in the order of the labels, a JSON list or, if it ends in .txt, one a line; or,
        unless there is such a file, the name of a list of `jaxclip.evaluate.prompts`, such as imagenet; empty for those
        of `prompts`, or else of the source. A list goes by the source's own labels where it knows them, such as the
        synset ids of TFDS's ImageNet.
      templates: phrases with a `{c}` whose embeddings are averaged per class; empty for those of `prompts`, the list
        that `classes` names, or a folder in CLIP_benchmark's form, the first of these that has any, and for
        "a photo of a {c}." without any.
      prompts: a published file of class names and phrases, see `prompts.read_prompts`: PATH, or PATH:NAME if it has
        several data sets.
    """

    classes: str = ""
    templates: tuple[str, ...] = ()
    prompts: str = ""

    def __post_init__(self):
        check_templates("templates", self.templates)

    def prepare(self, source: Source, root: str) -> Prompts:
        """The names of the classes, and the phrases.

        Raises:
          UserError: the source does not know the names, or a file or list does not hold them; a phrase has no place
            for a name.
        """
        return choose(self.data, source.class_names, root, self.classes, self.templates, self.prompts)

    def lacks(self, record: Record, prepared: Prompts) -> str:
        """Why a record cannot be evaluated.

        Raises:
          UserError: a class of it lies outside the names, which then are not those of the data.
        """
        classes = classes_of(record.label, record.tags)
        wrong = outside(classes or (), prepared.classes)
        if wrong:
            raise UserError(f"{wrong}, in {record.key}: the classes are not those of the data")
        return "no class label" if classes is None else ""

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Prompts
    ) -> evaluate.Result:
        """The metrics as fractions, by CLIP_benchmark's names where it has them.

        Of images with one class each these are `acc1`, `acc5`, `mean_per_class_recall` and
        `expected_calibration_error`, and of two classes `roc_auc`; acc5 is None below five classes. With them go the
        recall of each class name that occurs, and images: of the surest right and wrong answers, and behind the worst
        confusions. Of images with tags they are `mean_average_precision` and `mean_average_precision_11_point`, means
        over the classes that occur.

        Images without a label or tags are left out, and those with a class outside the names, which are counted in
        `skips`.

        Raises:
          UserError: no image has a label, or none can be read.
        """
        embedded = encoder.source(variables, source, skips)
        known = labeled(embedded, prepared.classes, skips)
        images = np.asarray(embedded.outputs[known.rows], np.float32)
        texts = class_embeddings(encoder, variables, prepared.classes, prepared.templates)
        if not known.single:
            return _of_tags(images, texts, known.classes, prepared)
        labels = np.array([label for (label,) in known.classes])
        answers = classified(images, texts, labels, logit_scale(encoder, variables))
        worst = worst_confusions(labels, answers.predicted, answers.confidence, _CONFUSIONS)
        numbers = [embedded.ids[row] for row in known.rows]
        examples = read_back(encoder, source, _shown(answers, labels, worst, numbers, prepared.classes))
        # By the margin: probabilities of a sharp model are rounded to 0 and 1.
        margins = images @ (texts[1] - texts[0]) if len(texts) == 2 else None
        result = _of_labels(answers, labels, margins, prepared, worst, examples)
        return dataclasses.replace(result, outcomes_of=known.examples)


def logit_scale(encoder: Encoder, variables: Any) -> float:
    """The factor of cosines before a softmax; 1 for a model without one."""
    if not encoder.has("scale_and_bias"):
        return 1.0
    scale = float(methods.bind(encoder.method)(variables).scale_and_bias()[0])
    return scale if np.isfinite(scale) else 1.0


def _of_labels(
    answers: Answers,
    labels: Int[np.ndarray, "images"],
    margins: Float[np.ndarray, "images"] | None,
    prompts: Prompts,
    worst: Sequence[Confusion],
    examples: tuple[evaluate.Example, ...],
) -> evaluate.Result:
    classes, right = prompts.classes, answers.ranks == 0
    per_label = {int(label): float(np.mean(right[labels == label])) for label in np.unique(labels)}
    # Two classes of a list may have the same name, and still are two classes.
    groups = np.unique(np.array(classes), return_inverse=True)[1][labels]
    sizes, found = np.bincount(groups), np.bincount(groups, right)
    of_label = dict(zip(labels.tolist(), groups.tolist(), strict=True))
    per_name = {classes[label]: float(found[of_label[label]] / sizes[of_label[label]]) for label in per_label}
    accuracy = recalls(answers.ranks, (1, 5))
    metrics: dict[str, float | None] = {
        "acc1": accuracy[1],
        "acc5": accuracy[5] if len(classes) >= 5 else None,
        "mean_per_class_recall": float(np.mean(list(per_label.values()))),
        "expected_calibration_error": calibration_error(right, answers.confidence),
    }
    columns = ["top-1", "top-5", "mean per class", "calibration error"]
    if margins is not None and len(per_label) == 2:
        metrics["roc_auc"] = roc_auc(labels == 1, margins)
        columns.append("ROC AUC")
    tables = [evaluate.Table("Zero-shot classification", tuple(columns), {"": tuple(metrics.values())}, fractions=True)]
    # Far more names than classes may be a wrong list, or a part of a large set.
    occurring = f", of which {len(per_label)} occur" if 2 * len(per_label) < len(classes) else ""
    if worst:
        # As text, since the report draws numbers over the steps.
        rows = {
            f"{classes[cell.label]} → {classes[cell.predicted]}": (f"{cell.share:.1%}", len(cell.images))
            for cell in worst
        }
        tables.append(evaluate.Table("Most frequent confusions", ("of the class", "images"), rows))
    return evaluate.Result(
        metrics=metrics,
        summary=f"zero-shot accuracy {accuracy[1]:.1%} ({len(classes)} classes{occurring})",
        headline=(f"{accuracy[1]:.1%}", f"zero-shot top-1\nchance {1 / len(classes):.1%}"),
        tables=tuple(tables),
        examples=examples,
        further={"per_class_recall": per_name} | prompts_json(prompts),
        outcomes={f"acc{k}": answers.ranks < k for k in (1, 5) if len(classes) >= k},
    )


def _of_tags(
    images: Float[np.ndarray, "images width"],
    texts: Float[np.ndarray, "classes width"],
    tags: Sequence[tuple[int, ...]],
    prompts: Prompts,
) -> evaluate.Result:
    """Of each class, how high the images that have it stand among all images."""
    precisions: dict[int, tuple[float, float]] = {}
    for index in sorted({index for of_image in tags for index in of_image}):
        relevant, scores = np.array([index in of_image for of_image in tags]), images @ texts[index]
        precisions[index] = average_precision(relevant, scores), eleven_point_precision(relevant, scores)
    if not precisions:
        raise UserError("no image has a tag")
    whole, eleven = np.mean(list(precisions.values()), axis=0).tolist()
    columns = ("mean average precision", "of eleven points")
    return evaluate.Result(
        metrics={"mean_average_precision": whole, "mean_average_precision_11_point": eleven},
        summary=f"zero-shot mean average precision {whole:.1%} ({len(precisions)} classes)",
        headline=(f"{whole:.1%} mAP", f"zero-shot\n{len(precisions)} classes"),
        tables=(evaluate.Table("Zero-shot tags", columns, {"": (whole, eleven)}, fractions=True),),
        further={"per_class_average_precision": {prompts.classes[index]: one for index, (one, _) in precisions.items()}}
        | prompts_json(prompts),
    )


def prompts_json(prompts: Prompts) -> dict[str, Any]:
    """The keys that CLIP_benchmark's files have them under, and where they are from."""
    return {
        "classnames": list(prompts.classes),
        "templates": list(prompts.templates),
        "prompts_source": {"classes": prompts.classes_source, "templates": prompts.templates_source},
    }


def _shown(
    answers: Answers,
    labels: Int[np.ndarray, "images"],
    confusions: Sequence[Confusion],
    numbers: Sequence[int],
    classes: Sequence[str],
) -> list[Shown]:
    """The surest right and the surest wrong answers, and the surest behind confusions that are not among them."""
    right = answers.ranks == 0
    shown = _surest(answers, labels, np.flatnonzero(right)), _surest(answers, labels, np.flatnonzero(~right))
    behind = [
        row for cell in confusions for row in [row for row in cell.images if row not in shown[1]][:_PER_CONFUSION]
    ]

    def text(row: int) -> str:
        taken = "" if right[row] else f", taken for {classes[answers.predicted[row]]}"
        return f"{classes[labels[row]]}{taken} ({answers.confidence[row]:.1%})"

    return [Shown(numbers[row], text(row), bool(right[row])) for row in [*shown[0], *shown[1], *behind[:_SHOWN]]]


def _surest(answers: Answers, labels: Int[np.ndarray, "images"], rows: Int[np.ndarray, "some"]) -> list[int]:
    """The surest of some answers: one of each class, and if these are too few, the next of each."""
    rows = rows[np.argsort(-answers.confidence[rows], kind="stable")]
    before: dict[int, int] = {}
    turns = []
    for label in labels[rows].tolist():
        turns.append(before.get(label, 0))
        before[label] = turns[-1] + 1
    return rows[np.argsort(turns, kind="stable")][:_SHOWN].tolist()
