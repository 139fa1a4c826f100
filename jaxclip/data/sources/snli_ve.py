"""Hypotheses about Flickr30k's images, from the JSON Lines of SNLI-VE (Xie et al. 2019)."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import Any

from jaxclip.data.record import Question
from jaxclip.data.sources.json_lines import objects
from jaxclip.data.sources.questions import ENTAILMENT, QuestionSet, cleaned
from jaxclip.data.sources.single_file import warn_of_unused
from jaxclip.errors import UserError

_IDS = ("Flickr30K_ID", "Flikr30kID")  # the second is as published
_ID = re.compile(r"[\w-]{1,200}(?:\.jpg)?")
_FOLDERS = ("flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images", "Images", "images", "")


def is_line(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a line of such a file."""
    return "sentence2" in fields and "gold_label" in fields and any(key in fields for key in _IDS)


def read(path: str) -> QuestionSet:
    """The hypotheses about each image; a warning counts lines that cannot be used, or on which annotators disagree.

    Args:
      path: of snli_ve_train.jsonl or another file of its form, local or remote.

    Raises:
      UserError: the file cannot be read, or no line can be used.
    """
    found: dict[tuple[str, ...], list[Question]] = {}
    unused = collections.Counter[str]()
    for fields in objects(path):
        text = cleaned(fields.get("sentence2"))
        name = str(next((fields[key] for key in _IDS if key in fields), ""))
        if not text or not _ID.fullmatch(name):
            unused["lines without a Flickr30K_ID or a sentence2"] += 1
            continue
        label = fields.get("gold_label")
        if label == "-":
            unused["lines with gold_label -, on which annotators did not agree"] += 1
        elif label not in ENTAILMENT:
            unused[f"lines whose gold_label is none of {', '.join(ENTAILMENT)}"] += 1
        else:
            images = (f"{name.removesuffix('.jpg')}.jpg",)
            found.setdefault(images, []).append(Question(text, label=ENTAILMENT.index(label)))
    if not found:
        raise UserError(f"{path} has no line of Flickr30K_ID, sentence2 and gold_label that can be used")
    warn_of_unused(path, unused)
    return QuestionSet(found, ENTAILMENT, _FOLDERS)
