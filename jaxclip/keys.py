"""The keys of a recipe with their values and what they mean, read from the dataclasses of the config."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any


def listing(kind: type, values: Any, where: str, without: str = "") -> Iterator[str]:
    """Lines on every key of a dataclass and of those inside it: its value, and the sentence of its docstring.

    Args:
      kind: the dataclass.
      values: an instance of it, a mapping of the same keys, or None for the defaults.
      where: the name of the whole, such as config.
      without: a key to leave out.
    """
    sentences = _sentences(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key, value = f"{where}.{field.name}", _value(field, values)
        if field.name == without:
            continue
        inner = value if dataclasses.is_dataclass(value) else hints[field.name]
        if dataclasses.is_dataclass(inner):
            yield from listing(inner if isinstance(inner, type) else type(inner), value, key)
            continue
        yield f"--{key}={'' if value is dataclasses.MISSING else value}"
        sentence = sentences.get(field.name, "")
        yield from textwrap.wrap(sentence, 108, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _value(field: dataclasses.Field, values: Any) -> Any:
    if isinstance(values, Mapping) and field.name in values:
        return values[field.name]
    if values is not None and not isinstance(values, Mapping) and values is not dataclasses.MISSING:
        return getattr(values, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _sentences(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", attributes)[0]
        for entry in re.split(r"\n(?=  \w)", section):
            names, colon, text = entry.strip().partition(":")
            if colon:
                found |= dict.fromkeys(re.split(r", *", names), " ".join(text.split()))
    return found
