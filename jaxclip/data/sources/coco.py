"""Captions and object categories of images, from COCO's JSON files (Chen et al. 2015; Lin et al. 2014)."""

from __future__ import annotations

import collections
import json
import re
from typing import Any, NamedTuple

from jaxclip.data.sources.single_file import opened, warn_of_unused
from jaxclip.errors import UserError
from jaxclip.io import one_line

# The polygons of objects, two thirds of a file of instances, are dropped before it is parsed. Within a string of JSON,
# the key's quotes would be escaped.
_POLYGONS = re.compile(rb'"segmentation":\s*\[[^"{}]*\]')


class _Image(NamedTuple):
    id: int | str
    name: str


class _Annotation(NamedTuple):
    """A caption or an object of an image; what it lacks is None."""

    image: int | str | None
    caption: Any
    category: int | None


def read_captions(path: str) -> dict[str, list[str]]:
    """The captions of each image by its file name, in the file's order; empty lists for images without any.

    A warning counts the entries that cannot be used.

    Args:
      path: of captions_train2017.json or another file of its form, local or remote.

    Raises:
      UserError: the file cannot be read, is not of this form, or has no captions.
    """
    content, unused = _load(path), collections.Counter[str]()
    names = _names(content["images"], unused)
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    by_id = {number: captions[name] for number, name in names.items()}
    for entry in content["annotations"]:
        if not isinstance(entry, _Annotation) or not isinstance(entry.caption, str):
            unused["annotations without a caption"] += 1
        elif (of_image := by_id.get(entry.image)) is None:
            unused["captions of images that are not in the list"] += 1
        else:
            of_image.append(entry.caption)
    if not any(captions.values()):
        raise UserError(f"{path} has no caption of the images in its list; COCO's captions are in captions_*.json")
    warn_of_unused(path, unused)
    return captions


def read_categories(path: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The categories of the objects in each image by its file name, and the names of all categories by their ids.

    Categories are given by their positions in the list of names, increasing, each once. A warning counts the entries
    that cannot be used.

    Args:
      path: of instances_train2017.json or another file of its form, local or remote.

    Raises:
      UserError: the file cannot be read or is not of this form.
    """
    content, unused = _load(path), collections.Counter[str]()
    categories = content.get("categories")
    categories = categories if isinstance(categories, list) else []
    listed = {
        entry["id"]: entry["name"]
        for entry in categories
        if isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("name"), str)
    }
    if not listed or len(listed) != len(categories):
        raise UserError(f"{path}: categories must be a list of objects with a name and an id of their own, 1, 2, ...")
    places = {number: place for place, number in enumerate(sorted(listed))}
    names = _names(content["images"], unused)
    found: dict[str, set[int]] = {name: set() for name in names.values()}
    by_id = {number: found[name] for number, name in names.items()}
    for entry in content["annotations"]:
        of_image = by_id.get(entry.image) if isinstance(entry, _Annotation) else None
        place = places.get(entry.category) if isinstance(entry, _Annotation) else None
        if of_image is None or place is None:
            unused["objects without an image or a category of the lists"] += 1
        else:
            of_image.add(place)
    warn_of_unused(path, unused)
    return {name: tuple(sorted(tags)) for name, tags in found.items()}, [listed[number] for number in sorted(listed)]


def _load(path: str) -> dict[str, Any]:
    """The content of a file that has lists of images and annotations, with these as `_Image` and `_Annotation`."""
    with opened(path) as file:
        # Whole files have half a gigabyte: nothing is kept twice.
        data = _POLYGONS.sub(b'"segmentation":0', file.read())
    text = data.decode("utf-8-sig", errors="replace")
    del data
    try:
        content = json.loads(text, object_hook=_entry)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}") from None
    lists = ("images", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise UserError(
            f"{path} has no lists of images and annotations, as COCO's files have; for other data, write a .jsonl file "
            "with an object of file_name and caption on each line"
        )
    return content


def _entry(fields: dict[str, Any]) -> dict[str, Any] | _Image | _Annotation:
    """What is kept of a JSON object."""
    if "image_id" in fields:
        image, category = fields["image_id"], fields.get("category_id")
        known = isinstance(image, (int, str)) and (category is None or isinstance(category, int))
        return _Annotation(image, fields.get("caption"), category) if known else _Annotation(None, None, None)
    number, name = fields.get("id"), fields.get("file_name")
    return _Image(number, name) if isinstance(number, int | str) and isinstance(name, str) else fields


def _names(images: list[Any], unused: collections.Counter[str]) -> dict[int | str | None, str]:
    """The file name of each image by its id."""
    names: dict[int | str | None, str] = {}
    for image in images:
        if not isinstance(image, _Image) or not image.name:
            unused["images without an id or a file name"] += 1
        elif names.setdefault(image.id, image.name) != image.name:
            unused["images with the id of another"] += 1
    return names
