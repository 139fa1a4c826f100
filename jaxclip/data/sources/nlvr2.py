"""Statements about pairs of photographs, from the JSON Lines of NLVR2 (Suhr et al. 2019)."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import Any

from jaxclip.data.record import Question
from jaxclip.data.sources.json_lines import objects
from jaxclip.data.sources.questions import TRUTH, QuestionSet, cleaned
from jaxclip.data.sources.single_file import warn_of_unused
from jaxclip.errors import UserError

# The split, the numbers of a set and of a pair of images, and that of the statement: "train-10171-0-0".
_IDENTIFIER = re.compile(r"((\w{1,20})-\d{1,20}-\d{1,20})-\d{1,20}")


def is_line(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a line of such a file."""
    return "sentence" in fields and _IDENTIFIER.fullmatch(str(fields.get("identifier"))) is not None


def read(path: str) -> QuestionSet:
    """The statements about each pair of images; a warning counts lines that cannot be used.

    Lines of the hidden test set have no label, and neither do their questions. Images are named with the folder that
    their line gives, as those of training are.

    Args:
      path: of train.json, dev.json, test1.json or another file of their form, local or remote.

    Raises:
      UserError: the file cannot be read, or no line can be used.
    """
    found: dict[tuple[str, ...], list[Question]] = {}
    unused = collections.Counter[str]()
    splits: dict[str, None] = {}
    for fields in objects(path):
        text, identifier = cleaned(fields.get("sentence")), _IDENTIFIER.fullmatch(str(fields.get("identifier")))
        label, directory = str(fields.get("label")), fields.get("directory")
        if not text or not identifier:
            unused["lines without an identifier or a sentence"] += 1
        elif "label" in fields and label not in TRUTH:
            unused["lines whose label is not True or False"] += 1
        else:
            pair, split = identifier.groups()
            splits[split] = None
            place = f"{directory}/" if re.fullmatch(r"\d{1,9}", str(directory)) else ""
            question = Question(text, label=TRUTH.index(label) if label in TRUTH else None)
            found.setdefault((f"{place}{pair}-img0.png", f"{place}{pair}-img1.png"), []).append(question)
    if not found:
        raise UserError(f"{path} has no line of identifier, sentence and label that can be used")
    warn_of_unused(path, unused)
    folders = [folder for split in splits for folder in (split, f"images/{split}")]
    return QuestionSet(found, TRUTH, (*folders, "images", ""))
