"""Questions about the images of a data set, and sentences about them, for evaluations of models that fuse the two."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxclip.data.record import Question, Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources.question_file import QuestionFile
from jaxclip.encoder import Encoder, gather
from jaxclip.errors import UserError
from jaxclip.evaluate.evaluator import examples_digest
from jaxclip.evaluate.rescoring import OfPairs, of_pairs

_CHUNK = 256  # records read at a time


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of a source that have answers, or labels.

    Attributes:
      numbers: of the records that have any.
      records: of each question, its record's place in `numbers`, increasing.
      questions: the questions.
    """

    numbers: list[int]
    records: Int[np.ndarray, "questions"]
    questions: list[Question]

    def examples(self, chosen: Bool[np.ndarray, "questions"]) -> str:
        """The digest of the chosen ones; see `jaxclip.evaluate.examples_digest`."""
        rows = np.flatnonzero(chosen)
        return examples_digest([(self.numbers[self.records[row]], self.questions[row].text) for row in rows])

    def spread(self, chosen: Bool[np.ndarray, "questions"], most: int) -> Int[np.ndarray, "_"]:
        """The rows of some of the chosen ones, spread over the data; no more than one of a record."""
        rows = np.flatnonzero(chosen)
        rows = rows[np.unique(self.records[rows], return_index=True)[1]]
        return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=int))]

    def ask(
        self,
        encoder: Encoder,
        variables: Any,
        source: Source,
        skips: SkipLog,
        function: tuple[str, OfPairs],
        images: int = 1,
    ) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, "questions"]]:
        """A function of images' tokens and of the tokens and ends of questions, for all of them.

        Returns:
          The results, those with gray images, and of which questions the images could be read; see
          `rescoring.of_pairs`.
        """
        tokens, ends = encoder.tokenize([question.text for question in self.questions])
        pairs = np.stack([self.records, np.arange(len(self.questions))], axis=1)
        given = (self.numbers, pairs, (tokens, ends), function)
        found, blank, known = of_pairs(encoder, variables, source, skips, *given, images=images, blank=True)
        assert blank is not None
        return found, blank, known


def questions_of(source: Source, *, labeled: bool) -> Questions:
    """The questions of all records; each process reads its share, and all get the same.

    Args:
      source: of the records.
      labeled: those with labels, or else those with answers.

    Raises:
      UserError: there are none.
    """
    ids = range(jax.process_index(), len(source), jax.process_count())
    found = []
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        for number, questions in zip(chunk, _questions(source, chunk), strict=True):
            wanted = [one for one in questions if (one.label is not None if labeled else one.answers)]
            found += [(number, one.text, one.answers, one.label) for one in wanted]
    every = sorted((entry for part in gather(found) for entry in part), key=lambda entry: entry[0])
    if not every:
        raise UserError(f"no record has a {'sentence with a label' if labeled else 'question with answers'}")
    numbers = sorted({number for number, *_ in every})
    place = {number: at for at, number in enumerate(numbers)}
    return Questions(
        numbers,
        np.array([place[number] for number, *_ in every]),
        [
            Question(text, tuple((answer, weight) for answer, weight in answers), label)
            for _, text, answers, label in every
        ],
    )


def _questions(source: Source, ids: Sequence[int]) -> list[tuple[Question, ...]]:
    """Of each record; the images are not read where the questions are known without them."""
    if isinstance(source, QuestionFile):
        return [source.questions[number] for number in ids]
    return [record.questions if isinstance(record, Record) else () for record in source.read(ids)]


def frequent_answers(questions: Questions, most: int) -> list[str]:
    """The answers with the largest total weight, in this order; of equal ones those that come first."""
    totals: collections.Counter[str] = collections.Counter()
    for question in questions.questions:
        for answer, weight in question.answers:
            totals[plain(answer)] += weight  # type: ignore[assignment]
    return [answer for answer, _ in totals.most_common(most)]


def plain(answer: str) -> str:
    """An answer as it is compared."""
    return " ".join(answer.lower().split())
