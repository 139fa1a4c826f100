"""The choice of class names and phrases among those of the data, of known lists and of files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from jaxclip.config import check_templates
from jaxclip.data.sources import benchmark_folder
from jaxclip.data.storage import resolve
from jaxclip.errors import UserError
from jaxclip.evaluate.prompts.files import read_prompts
from jaxclip.evaluate.prompts.known import find, known
from jaxclip.evaluate.prompts.prompt_set import PromptSet, nearest

_NONE = PromptSet((), ())


class Prompts(NamedTuple):
    """The names of the classes, the phrases with a `{c}` that each is put into, and where both are from."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    classes_source: str = ""
    templates_source: str = ""


def choose(
    data: str, labels: Sequence[str], root: str, classes: str, templates: tuple[str, ...], prompts: str
) -> Prompts:
    """The class names and phrases to use, by the keys of the evaluation `zeroshot_classification`.

    Args:
      data: the source as text.
      labels: what the source calls its classes; empty if it does not say it.
      root: the folder that relative paths start from.
      classes, templates, prompts: see `zeroshot_classification.Evaluator`.

    Raises:
      UserError: there are no names, they are not those of the data, a file cannot be read, or a phrase has no `{c}`.
        The message begins with the key at fault.
    """
    file = resolve(classes, root)
    is_list = classes in known() and not pathlib.Path(file).exists()
    listed = _listed(classes) if is_list else _NONE
    published = _published(prompts, root) if prompts else _NONE
    from_list, from_file = f"classes={classes}: {listed.source}", f"prompts={prompts}"
    if classes and not is_list:
        names, names_source = _class_names(classes, file), f"classes={classes}"
        if labels and len(labels) != len(names):
            raise UserError(f"classes: {file} has {len(names)} names for the {len(labels)} classes of {data}")
    elif listed.classes:
        names, names_source = _for_labels(listed, labels, f"classes={classes}", data), from_list
    elif published.classes:
        names, names_source = _for_labels(published, labels, from_file, data), from_file
    elif labels:
        names, names_source = tuple(labels), data
    else:
        raise UserError(
            f"classes is missing: {data} does not say its class names; give a FILE.json, a FILE.txt of one a line, or "
            "the name of a known list such as imagenet"
        )
    own = benchmark_folder.find(resolve(data.removeprefix("folder:"), root))
    candidates = (
        (templates, "templates"),
        (published.templates, from_file),
        (listed.templates, f"classes={classes}: jaxclip"),
        (own.templates if own else (), data),
        (("a photo of a {c}.",), "default"),
    )
    phrases, phrases_source = next(candidate for candidate in candidates if candidate[0])
    check_templates("templates", phrases)
    return Prompts(names, phrases, names_source, phrases_source)


def _for_labels(prompts: PromptSet, labels: Sequence[str], key: str, data: str) -> tuple[str, ...]:
    try:
        return prompts.names_for(labels)
    except UserError as error:
        raise UserError(f"{key} does not have the classes of {data}: {error}") from None


def _listed(name: str) -> PromptSet:
    try:
        return find(name)
    except UserError as error:
        raise UserError(f"classes={name}: {error}; give a file of the class names") from None


def _published(prompts: str, root: str) -> PromptSet:
    """The prompts of PATH or PATH:NAME."""
    path, _, dataset = prompts.rpartition(":")
    if not path or "/" in dataset:
        path, dataset = prompts, ""
    try:
        return read_prompts(resolve(path, root), dataset)
    except UserError as error:
        raise UserError(f"prompts: {error}") from None


def _class_names(name: str, path: str) -> tuple[str, ...]:
    """The names of a file; `name` is how the person wrote its path."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        classes = text.strip().splitlines() if path.endswith(".txt") else json.loads(text)
    except FileNotFoundError:
        if name.replace("_", "").isalnum():
            raise UserError(f"classes: {name} is neither a file nor a known list; {nearest(name, known())}") from None
        raise UserError(f"classes: no file {path}; it holds a JSON list of the class names") from None
    except OSError as error:
        raise UserError(f"classes: {path} cannot be read: {error.strerror}; give a FILE.json or a FILE.txt") from None
    except ValueError as error:
        raise UserError(
            f"classes: {path} is not JSON ({error}); one name a line is for a file that ends in .txt"
        ) from None
    if not isinstance(classes, list) or not classes or not all(isinstance(item, str) for item in classes):
        raise UserError(f"classes: {path} must hold a list of class names")
    return tuple(item.strip() for item in classes)
