"""Parsing of mappings into frozen dataclasses, with one-line errors that name the key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from jaxclip.errors import UserError

T = TypeVar("T", bound=Any)


def parse(kind: type[T], value: Any, where: str = "config") -> T:
    """Builds the dataclass `kind` from a mapping.

    Args:
      kind: a dataclass; nested dataclasses, tuples, mappings and literals are built too. The messages of its own checks
        must begin with the name of the invalid key.
      value: a mapping such as a ConfigDict.
      where: the dotted name of `value`, for messages.

    Raises:
      UserError: an unknown or missing key, a wrong type or an impossible value; the message names the key.
    """
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
        raise UserError(f"{where} must hold keys ({', '.join(_keys(kind))}), not {value!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = dict(value.items())
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"the keys are {', '.join(fields)}"
            raise UserError(f"{where}.{key} is not a key; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where}.{name} is missing")
    converted = {key: _convert(hints[key], item, f"{where}.{key}") for key, item in values.items()}
    try:
        return kind(**converted)
    except UserError as error:
        # A dataclass does not know its place in the config.
        raise UserError(f"{where}.{error}") from None


def parse_named(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """Builds one of several dataclasses, chosen by the `name` in the value; the first if there is no `name`.

    Raises:
      UserError: no dataclass has that name, or as in `parse`.
    """
    names = {next(field.default for field in dataclasses.fields(kind) if field.name == "name"): kind for kind in kinds}
    if not hasattr(value, "items"):
        raise UserError(f"{where}={value!r} must hold keys")
    name = dict(value.items()).get("name", next(iter(names)))
    if not isinstance(name, str) or name not in names:
        raise UserError(f"{where}.name={name!r} must be one of {', '.join(map(repr, names))}")
    return parse(names[name], value, where)


def defaults(kind: type) -> dict[str, Any]:
    """The default values of a config dataclass, by key; nested dataclasses become nested dicts."""
    hints, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[field.name] = defaults(hint)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
    return values


def to_dict(config: Any) -> Any:
    """A parsed config as plain JSON values."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(item) for key, item in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    return config


def flatten(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The leaves of a plain config by dotted name, such as {"data.train": ...}."""
    leaves = {}
    for key, item in config.items():
        if isinstance(item, Mapping) and item:
            leaves.update(flatten(item, f"{where}{key}."))
        else:
            leaves[f"{where}{key}"] = item
    return leaves


def _keys(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where}={value!r} must be one of {', '.join(map(repr, args))}")
        return value
    if origin is types.UnionType and dataclasses.is_dataclass(args[0]):
        return parse_named(args, value, where)
    if origin is types.UnionType:
        if type(value) is str:  # all other unions are of text and a tuple, in this order
            return value
        if not isinstance(value, tuple | list):
            raise UserError(f"{where}={value!r} must be text or a tuple")
        return _convert(args[1], value, where)
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin in (Mapping, dict) or isinstance(origin, type) and issubclass(origin, Mapping):
        if not hasattr(value, "items"):
            raise UserError(f"{where}={value!r} must hold keys")
        return types.MappingProxyType({key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()})
    if hint is Any:
        return _plain(value.to_dict() if hasattr(value, "to_dict") else value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(
            f"{where}={value!r} must be {_NAMES[hint]}, not {_NAMES.get(type(value), type(value).__name__)}"
        )
    return value


def _plain(value: Any) -> Any:
    """Normalizes an untyped value so that Python and JSON inputs compare equal."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise UserError(f"{where}={value!r} must be a tuple")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise UserError(f"{where}={tuple(value)!r} must have {len(args)} entries")
    return tuple(
        _convert(arg, item, f"{where}[{index}]") for index, (arg, item) in enumerate(zip(args, value, strict=True))
    )


_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
