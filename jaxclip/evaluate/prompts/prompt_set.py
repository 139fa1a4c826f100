"""The class names and phrases of a data set with their source."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence

from jaxclip.errors import UserError


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The names of a data set's classes, and phrases for them.

    Attributes:
      classes: the names in the order of the labels; empty if they are not known.
      templates: phrases with a `{c}` for the name; empty if there are none.
      ids: what the data call each class, such as n01440764 for tench, in the order of `classes`; empty if not known.
      source: where the names are from, and for a file also the phrases.
      license: of the names; empty if not known.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    ids: tuple[str, ...] = ()
    source: str = ""
    license: str = ""

    def names_for(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The names in the order of a data set's labels.

        Args:
          labels: what the data call their classes, by label; empty if they do not say it. If all of them are among
            `ids` or `classes`, but for capitals and punctuation, they decide which names are taken and in which order;
            otherwise the data are taken to number their classes as here.

        Raises:
          UserError: there are more or fewer labels than names, or those that are known here are in another order.
        """
        place = {_plain(name): index for own in (self.classes, self.ids) for index, name in enumerate(own)}
        found = [place.get(_plain(label)) for label in labels]
        if labels and None not in found:
            return tuple(self.classes[index] for index in found if index is not None)
        if labels and len(labels) != len(self.classes):
            raise UserError(f"{len(self.classes)} names for {len(labels)} classes of the data")
        moved = [label for label, index in enumerate(found) if index not in (None, label)]
        # A few names may be those of other classes: ImageNet has cranes and sunglasses twice.
        if len(moved) > 0.1 * sum(index is not None for index in found):
            raise UserError(f"{labels[moved[0]]} is number {moved[0]} of the data, and number {found[moved[0]]} here")
        return self.classes


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that are most like another one, for a message; all if none is."""
    names = sorted(names)
    folded = {known.lower(): known for known in names}
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, 3, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
