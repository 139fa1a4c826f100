"""Images with true and false captions: the files of SugarCrepe and Winoground, and procedural scenes."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxclip.data.record import Record, Source, image_digest
from jaxclip.data.sources.shapes import Shapes
from jaxclip.errors import UserError

_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_READ = 32  # records read at a time


class Instance(NamedTuple):
    """Images and two captions that are to be matched, as CLIP_benchmark calls it.

    Attributes:
      images: names of one image or two. The first caption is true of the first image; the second caption of the second
        image, and of none if there is one.
      captions: the two.
      kind: what they differ by, such as "swap_att"; empty if unknown.
    """

    images: tuple[str, ...]
    captions: tuple[str, str]
    kind: str


def read_instances(path: str) -> list[Instance]:
    """The instances of a file.

    Args:
      path: a file `KIND.json` as SugarCrepe publishes them (Hsieh et al. 2023), `{"ID": {"filename", "caption",
        "negative_caption"}}`, or a folder of them; or Winoground's `examples.jsonl` (Thrush et al. 2022), a line for
        each instance with `image_0`, `image_1`, `caption_0`, `caption_1`, whose kind is its `collapsed_tag` or `tag`.

    Raises:
      UserError: it cannot be read or is of another form. The message begins with `pairs`.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        files = sorted(place.glob("*.json"))
        if not files:
            raise UserError(
                f"pairs: {path} has no .json files; give SugarCrepe's folder or Winoground's examples.jsonl"
            )
        return [instance for file in files for instance in _sugarcrepe(file)]
    return _winoground(place) if place.suffix == ".jsonl" else _sugarcrepe(place)


def instances_of_shapes(source: Shapes) -> list[Instance]:
    """The instances that procedural scenes of two objects give; an image's name is its id.

    Raises:
      UserError: no scene has two objects.
    """
    instances = []
    for i in range(len(source)):
        caption, negatives = source.negatives(i)
        instances += [Instance((str(i),), (caption, negative), kind) for kind, negative in negatives.items()]
    if not instances:
        raise UserError(f"data: shapes:{source.split} has no scenes of two objects; shapes:validation has")
    return instances


def find_images(source: Source, names: Collection[str]) -> dict[str, int]:
    """The ids of the named images that a source has; all of its records are read, but none is decoded.

    A record has the name of its file without folder and suffix. Of several records of one image the first is taken.

    Raises:
      UserError: the source has two different images of one of the names, or has none of them. The message begins with
        the key at fault.
    """
    found: dict[str, int] = {}
    of_name: dict[str, tuple[str, str]] = {}
    key = ""
    for start in range(0, len(source), _READ):
        ids = range(start, min(start + _READ, len(source)))
        for i, record in zip(ids, source.read(ids), strict=True):
            key = record.key
            name = image_name(key.partition(":")[2])
            if name not in names:
                continue
            # One that cannot be read is found, too: the encoder counts it with its reason.
            digest = image_digest(record.image) if isinstance(record, Record) else record.reason
            before, other = of_name.setdefault(name, (digest, key))
            if before != digest:
                raise UserError(f"data: {other} and {key} are different images, and pairs names {name}")
            found.setdefault(name, i)
    if not found:
        raise UserError(
            f"pairs: none of its {len(names):,} images, such as {min(names)}, is among the {len(source):,} records of "
            f"data, such as {key}; give a source whose records have the names of the images"
        )
    return found


def image_name(path: str) -> str:
    """The name of an image file without its folder and suffix.

    >>> image_name("val2017/000000011813.jpg")
    '000000011813'
    """
    return _IMAGE_SUFFIX.sub("", path.rpartition("/")[2])


def _sugarcrepe(file: pathlib.Path) -> list[Instance]:
    content = _json(file, _text(file))
    if not isinstance(content, dict) or not content:
        raise UserError(f'pairs: {file} must be {{"ID": {{"filename", "caption", "negative_caption"}}, ...}}')
    instances = []
    for number, entry in content.items():
        filename, *captions = _texts(entry, ("filename", "caption", "negative_caption"), f"{number!r} of {file}")
        instances.append(Instance((image_name(filename),), (captions[0], captions[1]), file.stem))
    return instances


def _winoground(file: pathlib.Path) -> list[Instance]:
    instances = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        entry = _json(where, line)
        *images, first, second = _texts(entry, ("image_0", "image_1", "caption_0", "caption_1"), where)
        kind = entry.get("collapsed_tag") or entry.get("tag")
        kind = kind if isinstance(kind, str) else ""
        instances.append(Instance((image_name(images[0]), image_name(images[1])), (first, second), kind))
    if not instances:
        raise UserError(f"pairs: {file} has no lines")
    return instances


def _texts(entry: Any, keys: tuple[str, ...], where: str) -> list[str]:
    """The texts of an entry by its keys."""
    values = [entry.get(key) if isinstance(entry, Mapping) else None for key in keys]
    texts = [value.strip() for value in values if isinstance(value, str)]
    if len(texts) < len(keys) or not all(texts):
        raise UserError(f"pairs: {where} must have {', '.join(keys[:-1])} and {keys[-1]}")
    # JSON may contain a lone surrogate, which no tokenizer accepts: it becomes "?".
    return [text.encode("utf-8", errors="replace").decode() for text in texts]


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"pairs: {file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"pairs: {file} is not text in UTF-8") from None


def _json(where: object, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"pairs: {where} is not JSON ({error})") from None
