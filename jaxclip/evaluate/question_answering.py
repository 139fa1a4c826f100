"""Answers to questions about images, ranked among a fixed list (ALBEF, Li et al. 2021, section 5, VQA)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxclip import evaluate
from jaxclip.config import check_at_least
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.asked_questions import Questions, frequent_answers, plain, questions_of
from jaxclip.evaluate.evaluator import examples_digest
from jaxclip.evaluate.shown import Shown, read_back

_ANNOTATORS = 10  # of each question of VQA
_SHOWN = 12  # images of the report with a right answer, and as many with a wrong one


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """How often the answer is right, and how often without the image.

    Attributes:
      train: the source whose most frequent answers are the list.
      answers: how many these are; ALBEF's are 3,192.
      k: answers of a question that are compared as a whole, chosen by their first tokens.
    """

    needs: ClassVar[tuple[str, ...]] = ("image_tokens", "answer")

    train: str = dataclasses.field(kw_only=True)
    answers: int = 3192
    k: int = 128

    def __post_init__(self):
        check_at_least(self, 1, "answers", "k")

    def prepare(self, source: Source, root: str) -> list[str]:
        """The list of answers.

        Raises:
          UserError: `train` cannot be opened, or has no answers.
        """
        try:
            return frequent_answers(questions_of(open_source(self.train, root=root), labeled=False), self.answers)
        except UserError as error:
            raise UserError(f"train: {error}") from None

    def lacks(self, record: Record, prepared: list[str]) -> str:
        """Why a record cannot be evaluated."""
        return "" if any(question.answers for question in record.questions) else "no question with answers"

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: list[str]
    ) -> evaluate.Result:
        """`vqa_accuracy`, and `blank_vqa_accuracy` with gray images in place of all.

        An answer that three of ten annotators gave is right (Antol et al. 2015, section 3); the figure is the mean over
        subsets of nine, as in the official evaluation. Of a question with one answer, only that one is right. Answers
        are compared in lower case. Questions about images that cannot be read are left out.

        Raises:
          UserError: no question has answers; no image can be read.
        """
        questions = questions_of(source, labeled=False)
        assert encoder.tokenizer is not None
        length = encoder.method.inputs()["answers"].length  # type: ignore[union-attr]
        tokens, ends = map(jnp.asarray, encoder.tokenizer(prepared, length))
        k = min(self.k, len(prepared))

        def function(model: Any, ctx: Any, images: jax.Array, text: jax.Array, end: jax.Array) -> jax.Array:
            return model.answer(images[:, 0], text, end, tokens, ends, ctx, k=k)

        # The list of answers is part of the program.
        name = f"answer {k} {examples_digest(prepared)}"
        found, blank, known = questions.ask(encoder, variables, source, skips, (name, function))
        if not known.any():
            raise UserError(f"no record can be used: {skips}")
        right, without = (credits_of(questions, answers, prepared) for answers in (found, blank))
        accuracy, alone = (float(np.mean(part[known])) for part in (right, without))
        return evaluate.Result(
            metrics={"vqa_accuracy": accuracy, "blank_vqa_accuracy": alone},
            summary=f"{accuracy:.1%} of {known.sum():,} answers right, {alone:.1%} without the image",
            headline=(f"{accuracy:.1%}", f"of answers right\n{alone:.1%} without the image"),
            tables=(
                evaluate.Table("Answers", ("with the image", "without"), {"right": (accuracy, alone)}, fractions=True),
            ),
            examples=read_back(encoder, source, _shown(questions, found, right, known, prepared)),
        )


def credits_of(
    questions: Questions, found: Int[np.ndarray, "questions"], answers: list[str]
) -> Float[np.ndarray, "questions"]:
    """The share of rightness of each answer, 0 to 1."""
    values = np.zeros(len(found))
    for row, (question, place) in enumerate(zip(questions.questions, found, strict=True)):
        share = sum(weight for answer, weight in question.answers if plain(answer) == answers[place])
        count = share * _ANNOTATORS
        # The annotator who is left out may have given the answer or another one.
        values[row] = share * min((count - 1) / 3, 1) + (1 - share) * min(count / 3, 1) if count > 0 else 0.0
    return values


def _shown(
    questions: Questions,
    found: Int[np.ndarray, "questions"],
    right: Float[np.ndarray, "questions"],
    known: Bool[np.ndarray, "questions"],
    answers: list[str],
) -> list[Shown]:
    """Right and wrong answers, spread over the data; no more than one of an image of either kind."""
    shown = []
    for is_right, of_kind in ((True, right >= 0.9), (False, right == 0)):
        for row in questions.spread(known & of_kind, _SHOWN):
            question = questions.questions[row]
            best = max(question.answers, key=lambda answer: answer[1])[0]
            text = f"{question.text} {answers[found[row]]}" + ("" if is_right else f" (right: {best})")
            shown.append(Shown(questions.numbers[questions.records[row]], text, is_right))
    return shown
