"""Search for the folder of the images that a file names."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jaxclip.data import storage
from jaxclip.data.sources.single_file import at
from jaxclip.errors import UserError
from jaxclip.io import printable

_TRIED = 8  # images, to find their folder


def find(path: str, forms: Sequence[Sequence[str]], folder: str, published: Sequence[str]) -> tuple[str, int]:
    """The first of the folders where images may be that has one of a few, and the number of the form of their names.

    Args:
      path: of the file, local or remote.
      forms: the names of the images, in each form that they may have.
      folder: of the images. Empty to look for them beside the file and beside the file's folder.
      published: the folders' names in the published archives; "" for the images themselves.

    Raises:
      UserError: no folder has one of them.
    """
    relative = [[name for name in names if not storage.is_remote(name)] for names in forms]
    some = [names[:: -(-len(names) // _TRIED) or 1] for names in relative]
    beside, _, base = (path if storage.is_remote(path) else os.path.abspath(path)).rpartition("/")
    above = beside.rpartition("/")[0]
    if storage.is_remote(beside) and not storage.is_remote(above):
        above = beside  # a bucket
    for place in [folder] if folder else [f"{start}/{name}" for name in published for start in (beside, above)]:
        for number, names in enumerate(some):
            if not names or any(storage.exists(at(place, name)) for name in names):
                return place, number
    looked = folder or f"{beside}, {above}, or their folders {', '.join(filter(None, published))}"
    example = printable(some[0][0], 200)
    raise UserError(
        f"{path}: its images, such as {example}, are not in {looked}; name their folder as in {base}:FOLDER"
    )
