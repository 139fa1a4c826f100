"""Typed, validated access to an untrusted JSON config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxclip.errors import UserError
from jaxclip.io import printable

T = TypeVar("T")

LARGEST = 1 << 24  # the maximum of any size, such as a vocabulary of 16 million


class Keys:
    """A parsed JSON object with typed access to its values; an invalid one raises a UserError that names the key."""

    def __init__(self, source: str, values: Any, defaults: Mapping[str, Any], where: str = ""):
        """Takes a parsed object.

        Args:
          source: the file, for messages.
          values: the object; anything else raises UserError.
          defaults: the values of missing keys.
          where: the dotted name of the object in the file, for messages.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{source}: {where or 'it'} must hold keys, not {shown(values)}")
        self._source = source
        self._where = f"{where}." if where else ""
        self._values = {**defaults, **values}

    def get(self, key: str) -> Any:
        """The value, unchecked."""
        if key not in self._values:
            raise UserError(f"{self._source}: {self._where}{key} is missing")
        return self._values[key]

    def whole(self, key: str) -> int:
        """The value of a size, a whole number of at least 1."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise self.wrong(key, f"a whole number from 1 to {LARGEST}")
        return value

    def positive(self, key: str) -> float:
        """The value of a number above 0."""
        value = self.get(key)
        if not is_number(value) or not value > 0:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def choice(self, key: str, choices: Mapping[Any, T]) -> T:
        """The entry of the value in `choices`, whose keys are the allowed values."""
        value = self.get(key)
        # As dict keys, 1 and True are equal, and a list is invalid.
        found = [choices[choice] for choice in choices if type(choice) is type(value) and choice == value]
        if not found:
            raise self.wrong(key, " or ".join(map(shown, choices)))
        return found[0]

    def wrong(self, key: str, must: str) -> UserError:
        """The error for an invalid value; `must` describes valid ones."""
        return UserError(f"{self._source}: {self._where}{key}={shown(self._values[key])} must be {must}")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number within the range of a float."""
    return type(value) in (int, float) and -1e300 < value < 1e300 and math.isfinite(value)


def shown(value: Any) -> str:
    """An untrusted value as JSON, truncated for messages."""
    # Python refuses to print integers with thousands of digits.
    is_long = isinstance(value, int) and abs(value) >= 1 << 64
    return "a long number" if is_long else printable(json.dumps(value, default=str), 80)
