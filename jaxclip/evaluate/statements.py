"""Sentences about one image (SNLI-VE, Xie et al. 2019) or two (NLVR2, Suhr et al. 2019), judged by a model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxclip import evaluate, inputs
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.asked_questions import Questions, questions_of
from jaxclip.evaluate.shown import Shown, read_back

_SHOWN = 12  # images of the report with a sentence that is judged rightly, and as many of the others


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """How many sentences are judged rightly, how many without the image, and how many are of the largest class."""

    needs: ClassVar[tuple[str, ...]] = ("image_tokens", "judge")

    def lacks(self, record: Record, prepared: None) -> str:
        """Why a record cannot be evaluated."""
        if all(question.label is None for question in record.questions):
            return "no sentence with a label"
        return ""

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: None) -> evaluate.Result:
        """`accuracy`; `blank_accuracy` with gray images in place of all; `majority`, the share of the largest class.

        `mean_per_class_recall` is the mean over classes. Sentences about images that cannot be read are left out.

        Raises:
          UserError: no sentence has a label, or one is outside the model's classes; no image can be read.
        """
        questions = questions_of(source, labeled=True)
        labels = np.array([question.label for question in questions.questions])
        classes = encoder.method.classes  # type: ignore[attr-defined]
        if labels.max() >= classes or labels.min() < 0:
            raise UserError(
                f"a sentence has the label {labels.max()}, and the model {classes} classes, from 0: take a model of as "
                "many classes (config.method.classes), or data with its labels"
            )
        count = sum(isinstance(kind, inputs.Image) for kind in encoder.method.inputs().values())

        def function(model: Any, ctx: Any, images: jax.Array, text: jax.Array, end: jax.Array) -> jax.Array:
            return model.judge(images, text, end, ctx)

        found, blank, known = questions.ask(encoder, variables, source, skips, ("judge", function), count)
        if not known.any():
            raise UserError(f"no record can be used: {skips}")
        # The data may name fewer classes than the model has.
        names = [*source.class_names, *map(str, range(len(source.class_names), classes))]
        judged, right = found.argmax(axis=1), (found.argmax(axis=1) == labels)[known]
        alone = (blank.argmax(axis=1) == labels)[known]
        shares = np.bincount(labels[known], minlength=classes) / known.sum()
        recall = {
            names[label]: float(np.mean(right[labels[known] == label])) for label in range(classes) if shares[label]
        }
        metrics = {
            "accuracy": float(np.mean(right)),
            "blank_accuracy": float(np.mean(alone)),
            "majority": float(shares.max()),
            "mean_per_class_recall": float(np.mean(list(recall.values()))),
        }
        of_all = tuple(metrics[name] for name in ("accuracy", "blank_accuracy", "majority"))
        largest = names[int(shares.argmax())]
        return evaluate.Result(
            metrics=metrics,
            summary=f"{of_all[0]:.1%} of {known.sum():,} sentences judged rightly, {of_all[1]:.1%} without the image "
            f"({of_all[2]:.1%} are {largest})",
            headline=(f"{of_all[0]:.1%}", f"judged rightly\n{of_all[1]:.1%} without the image"),
            tables=(
                evaluate.Table(
                    "Sentences judged rightly",
                    ("with the image", "without", "largest class"),
                    {"all": of_all},
                    fractions=True,
                ),
                evaluate.Table(
                    "By class", ("judged rightly",), {name: (value,) for name, value in recall.items()}, fractions=True
                ),
            ),
            examples=read_back(encoder, source, _shown(questions, judged, labels, known, names)),
            outcomes={"accuracy": right, "blank_accuracy": alone},
            outcomes_of=questions.examples(known),
        )


def _shown(
    questions: Questions,
    judged: Int[np.ndarray, "questions"],
    labels: Int[np.ndarray, "questions"],
    known: Bool[np.ndarray, "questions"],
    names: list[str],
) -> list[Shown]:
    """Sentences judged rightly and wrongly, spread over the data; no more than one of an image of either kind."""
    shown = []
    for is_right in (True, False):
        for row in questions.spread(known & ((judged == labels) == is_right), _SHOWN):
            text = f"{questions.questions[row].text}: {names[judged[row]]}"
            text += "" if is_right else f" (right: {names[labels[row]]})"
            shown.append(Shown(questions.numbers[questions.records[row]], text, is_right))
    return shown
