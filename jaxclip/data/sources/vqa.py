"""Questions about COCO's images with ten answers each, from the JSON files of VQA v2 (Goyal et al. 2017)."""

from __future__ import annotations

import collections
import functools
import json
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxclip.data import storage
from jaxclip.data.record import Question
from jaxclip.data.sources.questions import QuestionSet, cleaned, shares
from jaxclip.data.sources.single_file import opened, warn_of_unused
from jaxclip.errors import UserError
from jaxclip.io import one_line, printable

_log = logging.getLogger(__name__)

# COCO's split in the name of a file or its data_subtype: "train2014"; "test-dev2015" has images of test2015.
_SPLIT = re.compile(r"(train|val|test)(?:-\w+)?(\d{4})")
_LARGEST_ID = 10**12 - 1  # twelve digits in a file name

# Ten answers to each of 400,000 questions are mostly the same few thousand.
_LONGEST_SHORT = 64
_short = functools.lru_cache(1 << 16)(cleaned)

Answers = tuple[tuple[str, float], ...]


class _Asked(NamedTuple):
    """A question of the file; what is not usable is None, or empty."""

    id: int | None
    image: int | None
    text: str


class _Annotation(NamedTuple):
    """The answers to a question."""

    id: int | None
    answers: Answers


def read(path: str) -> QuestionSet:
    """The questions about each image, with the answers of the annotations beside the file if there are any.

    An answer is weighted by its share of the ten annotators. A warning counts the entries that cannot be used.

    Args:
      path: of v2_OpenEnded_mscoco_train2014_questions.json or another file of its form, local or remote. Its answers
        are in v2_mscoco_train2014_annotations.json.

    Raises:
      UserError: a file cannot be read or is not of this form, or no split of COCO is named.
    """
    content = _load(path, "questions", _asked)
    folder, slash, base = path.rpartition("/")
    split = _SPLIT.search(str(content.get("data_subtype"))) or _SPLIT.search(base)
    if not split:
        raise UserError(f"{path}: its data_subtype must name COCO's images, as train2014 does")
    images = f"{split[1]}{split[2]}"
    answers_base = re.sub("(OpenEnded|MultipleChoice)_", "", base)[: -len("questions.json")] + "annotations.json"
    answers, answers_path = {}, f"{folder}{slash}{answers_base}"
    if annotated := storage.exists(answers_path):
        answers = _answers(answers_path)
    unused = collections.Counter[str]()
    found: dict[tuple[str, ...], list[Question]] = {}
    unanswered = 0
    for entry in content["questions"]:
        if not isinstance(entry, _Asked) or entry.id is None or entry.image is None or not entry.text:
            unused["questions without a text or the ids of itself and an image"] += 1
            continue
        unanswered += entry.id not in answers
        of_image = found.setdefault((f"COCO_{images}_{entry.image:012d}.jpg",), [])
        of_image.append(Question(entry.text, answers.get(entry.id, ())))
    if not found:
        raise UserError(f"{path} has no question about an image of COCO")
    if annotated and unanswered:
        _log.warning("%s: %d questions have no answers in %s", path, unanswered, answers_base)
    warn_of_unused(path, unused)
    return QuestionSet(found, (), (images, f"images/{images}", "images", ""))


def _answers(path: str) -> dict[int, Answers]:
    """The answers by the id of their question."""
    found: dict[int, Answers] = {}
    known: dict[tuple[str, float], tuple[str, float]] = {}
    unused = 0
    for entry in _load(path, "annotations", _annotation)["annotations"]:
        if isinstance(entry, _Annotation) and entry.id is not None and entry.answers:
            # Most answers are those of other questions, too: each is kept once.
            found[entry.id] = tuple(known.setdefault(answer, answer) for answer in entry.answers)
        else:
            unused += 1
    if unused:
        warn_of_unused(path, {"annotations without answers or the id of a question": unused})
    return found


def _load(path: str, key: str, hook: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The content of a file with a list of `key`, its objects as `hook` returns them."""
    with opened(path) as file:
        text = file.read().decode("utf-8-sig", errors="replace")
    try:
        content = json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {printable(one_line(error), 200)}") from None
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list of {key}, as VQA's files have")
    return content


def _asked(fields: dict[str, Any]) -> dict[str, Any] | _Asked:
    if "question" not in fields:
        return fields
    return _Asked(_id(fields.get("question_id")), _id(fields.get("image_id")), cleaned(fields["question"]))


def _annotation(fields: dict[str, Any]) -> Any:
    if "answer" in fields:  # of one annotator
        answer = fields["answer"]
        return _short(answer) if isinstance(answer, str) and len(answer) <= _LONGEST_SHORT else cleaned(answer)
    if "answers" not in fields:
        return fields
    answers = fields["answers"] if isinstance(fields["answers"], list) else []
    texts = [answer for answer in answers if isinstance(answer, str)]
    return _Annotation(_id(fields.get("question_id")), shares(texts))


def _id(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= _LARGEST_ID else None
