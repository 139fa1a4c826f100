"""The lists of `known.toml`."""

from __future__ import annotations

import functools
import importlib.resources
import re
import tomllib
from typing import Any

from jaxclip.data.sources.tfds_labels import label_names
from jaxclip.errors import UserError
from jaxclip.evaluate.prompts.prompt_set import PromptSet, nearest


def known() -> tuple[str, ...]:
    """The names of the data sets that have a list, in alphabetical order."""
    return tuple(sorted(_lists()))


@functools.cache
def find(name: str) -> PromptSet:
    """The class names and phrases of a data set.

    Labels of TensorFlow Datasets are read from the installed package, which takes a few seconds to import.

    Raises:
      UserError: there is no list of this name, or the installed TensorFlow Datasets does not have its labels.
    """
    entry = _lists().get(name)
    if entry is None:
        raise UserError(f"{name} is not a known list of class names; {nearest(name, known())}")
    classes = _classes(entry)
    ids = tuple(classes) if isinstance(classes, dict) else ()
    names = tuple(classes.values()) if isinstance(classes, dict) else tuple(classes)
    return PromptSet(names, tuple(entry["templates"]), ids, entry["source"], entry["license"])


@functools.cache
def _lists() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_text("known.toml"))


def _text(file: str) -> str:
    return importlib.resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _lines(file: str) -> list[str]:
    return [line for line in _text(file).splitlines() if line and not line.startswith("#")]


def _classes(entry: dict[str, Any]) -> dict[str, str] | list[str]:
    """The names of the classes, by their ids where there are any."""
    classes = entry.get("classes", [])
    if isinstance(classes, list):
        return classes
    if classes.startswith("tfds:"):
        renamed = entry.get("renamed", {})
        return {label: renamed.get(label) or _readable(label) for label in label_names(classes.removeprefix("tfds:"))}
    names = dict(line.split("\t") for line in _lines(classes))
    return {label: names[label] for label in _lines(entry["only"])} if "only" in entry else names


def _readable(label: str) -> str:
    """A label of TensorFlow Datasets as words.

    >>> [_readable(label) for label in ("apple_pie", "IceDancing", "/c/church/indoor")]
    ['apple pie', 'ice dancing', 'indoor church']
    """
    if label.startswith("/"):
        # SUN397: its initial, the place, and what kind of it.
        label = " ".join(reversed(label.split("/")[2:]))
    if re.fullmatch("([A-Z][a-z]+)+", label):
        label = re.sub("(?<!^)(?=[A-Z])", " ", label).lower()
    return label.replace("_", " ")
