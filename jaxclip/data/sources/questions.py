"""Questions, answers and labels of data sets in one form: cleaned texts, annotators' shares, indices of label names."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.data.record import LARGEST_CAPTION, Question

# In the order of ALBEF's classes (Li et al. 2021, section 5).
ENTAILMENT = ("contradiction", "neutral", "entailment")
TRUTH = ("False", "True")

_INDICES = {name.lower(): index for names in (ENTAILMENT, TRUTH) for index, name in enumerate(names)}
# As SNLI and its copies write that annotators did not agree.
_UNDECIDED = ("-", "-1")


class UnknownLabelError(ValueError):
    """A label's name that has no index."""


class QuestionSet(NamedTuple):
    """The questions of a file.

    Attributes:
      questions: by the names of their images.
      class_names: the names that labels index; empty if there are no labels.
      folders: where the published archives have the images, as `image_folder.find` takes it.
    """

    questions: dict[tuple[str, ...], list[Question]]
    class_names: Sequence[str]
    folders: Sequence[str]


def cleaned(text: object) -> str:
    """A text on one line and without lone surrogates; empty if it is not a text or an enormous one."""
    if not isinstance(text, str) or len(text) > LARGEST_CAPTION:
        return ""
    return " ".join(text.encode("utf-8", errors="replace").decode().split())


def shares(answers: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The different answers to a question, each weighted by its share of the annotators (Li et al. 2021, section 5).

    Args:
      answers: one of each annotator, cleaned; empty ones have a share, but are left out.

    >>> shares(["red", "dark red", "red", "red"])
    (('red', 0.75), ('dark red', 0.25))
    """
    counts = collections.Counter(answers)
    return tuple((answer, count / len(answers)) for answer, count in counts.items() if answer)


def label_index(label: object) -> int | None:
    """The class index of a label: a number, or one of the names of entailment or of true and false, whatever the case.

    None if the annotators did not agree, which is written "-" or -1.

    Raises:
      UnknownLabelError: the label is none of these.
    """
    text = str(label).strip().lower() if isinstance(label, str | int) else ""
    if text in _UNDECIDED:
        return None
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if text not in _INDICES:
        raise UnknownLabelError(str(label))
    return _INDICES[text]


def names_of(label: object) -> tuple[str, ...]:
    """The names of the classes among which a label is given by name; empty if it is not."""
    text = str(label).strip().lower()
    return next((names for names in (ENTAILMENT, TRUTH) if text in map(str.lower, names)), ())


def from_json(fields: Mapping[str, Any]) -> tuple[Question, ...]:
    """The questions and sentences of a record's JSON object.

    Questions are in its list `questions`: a text, [question, answer], or an object of `question` and `answers`, one of
    each annotator, or `answer`. Sentences are in its list `items`: an object of `hypothesis` or `sentence` and `label`.
    Entries of other forms are left out, and so are sentences on which the annotators did not agree.

    Raises:
      UnknownLabelError: a label is neither a number nor a known name.
    """
    found = []
    for entry in _entries(fields, "questions"):
        match entry:
            case [text, answers]:
                pass
            case {"question": text}:
                answers = entry.get("answers", entry.get("answer"))
            case text:
                answers = ()
        answers = answers if isinstance(answers, list) else [answers] if isinstance(answers, str) else []
        if question := cleaned(text):
            found.append(Question(question, shares([cleaned(answer) for answer in answers])))
    for entry in _entries(fields, "items"):
        if isinstance(entry, dict) and (sentence := cleaned(entry.get("hypothesis", entry.get("sentence")))):
            label = entry.get("label")
            index = None if label is None else label_index(label)
            if label is None or index is not None:
                found.append(Question(sentence, label=index))
    return tuple(found)


def class_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that the labels of a record's `items` give; empty if they are numbers or there are none.

    Args:
      fields: the record's JSON object.
    """
    entries = _entries(fields, "items")
    return next((names for entry in entries if isinstance(entry, dict) if (names := names_of(entry.get("label")))), ())


def _entries(fields: Mapping[str, Any], key: str) -> Iterable[Any]:
    entries = fields.get(key)
    return entries if isinstance(entries, list) else ()
