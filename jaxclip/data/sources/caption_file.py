"""Source that reads a folder of images whose captions are in one file, as COCO, Flickr8k and Flickr30k have them."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence

from jaxclip.data import storage
from jaxclip.data.record import LARGEST_CAPTION, Record, Skip
from jaxclip.data.sources import coco, flickr, image_folder
from jaxclip.data.sources.single_file import at, opened, read_image, warn_of_replaced, warn_of_unused
from jaxclip.data.sources.table_rows import refuse_url
from jaxclip.errors import UserError

# Where the published archives have the images, beside the captions or beside their folder. "Flicker" is as published.
_FOLDERS = (
    *("Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset"),
    *("flickr30k-images", "flickr30k_images", "Images", "images", ""),
)


class CaptionFile:
    """The images of a caption file, one record each with all of its captions.

    Images are opened when they are read. Line breaks within a caption become spaces, because in evaluations each line
    is a caption. A record of `captions_X.json` has the categories of `instances_X.json` as its tags if there is this
    file beside it.

    Attributes:
      class_names: the names that tags index; empty without tags.
    """

    chunk_ends = None

    def __init__(self, path: str, names: str = "", folder: str = ""):
        """Reads the file; warnings count what in it cannot be used.

        Args:
          path: of the file, local or remote: COCO's JSON, Flickr8k's tokens, or a table named captions.txt.
          names: a text file with an image's name on each line, with or without its extension: only these are used. Its
            path is relative to the captions' folder. Empty for all images.
          folder: of the images. Empty to look for them beside the captions and beside the captions' folder, under the
            names that the data sets are published with.

        Raises:
          UserError: a file cannot be read or is of another form; the folder of the images is not found.
        """
        self._base = path.rpartition("/")[2]
        captions = _cleaned(path, _reader(self._base)(path))
        if names:
            captions = _only(captions, at(path.removesuffix(self._base), names))
        tags, self.class_names = _tags(path)
        self._names = list(captions)
        self._captions = list(captions.values())
        self._tags = [tags.get(name) for name in captions]
        self._folder = _folder(path, self._names, folder)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each without an image, or with neither captions nor tags."""
        return [self._record(index) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        name, captions, tags = self._names[index], self._captions[index], self._tags[index]
        key = f"{self._base}:{name[:4096]}"
        if not captions and tags is None:
            return Skip("no caption", key)
        image = read_image(at(self._folder, name), key)
        return image if isinstance(image, Skip) else Record(image, captions, key, tags=tags)


def _reader(base: str) -> Callable[[str], dict[str, list[str]]]:
    """What reads the captions of a file of this name."""
    if base.lower().endswith(".json"):
        return coco.read_captions
    return flickr.read_table if base.lower() == "captions.txt" else flickr.read_tokens


def _cleaned(path: str, captions: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """The captions without line breaks, repeated spaces and lone surrogates; without empty and enormous ones.

    Raises:
      UserError: an image is given as a url.
    """
    cleaned = {}
    unused = collections.Counter[str]()
    for name, texts in captions.items():
        refuse_url(path, name)
        kept = [text for text in texts if len(text) <= LARGEST_CAPTION]
        if len(kept) < len(texts):
            unused["captions that are too large"] += len(texts) - len(kept)
        words = (text.encode("utf-8", errors="replace").decode().split() for text in kept)
        cleaned[name] = tuple(filter(None, map(" ".join, words)))
    warn_of_unused(path, unused)
    warn_of_replaced(path, itertools.chain.from_iterable(cleaned.values()))
    return cleaned


def _only(captions: dict[str, tuple[str, ...]], path: str) -> dict[str, tuple[str, ...]]:
    """The captions of the images that a text file names."""
    with opened(path) as file:
        names = {line.strip() for line in file.read().decode("utf-8-sig", errors="replace").splitlines()} - {""}
    chosen = {name: texts for name, texts in captions.items() if name in names or name.rpartition(".")[0] in names}
    if not chosen:
        raise UserError(f"{path} must have the name of an image on each line; none of its {len(names):,} lines is one")
    if len(chosen) < len(names):
        warn_of_unused(path, {"names of images without captions": len(names) - len(chosen)})
    return chosen


def _tags(path: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The categories in each image and their names, of the instances beside COCO's captions; none without these."""
    folder, slash, base = path.rpartition("/")
    instances = f"{folder}{slash}{base.replace('captions_', 'instances_', 1)}"
    if not base.startswith("captions_") or not base.endswith(".json") or not storage.exists(instances):
        return {}, []
    return coco.read_categories(instances)


def _folder(path: str, names: Sequence[str], folder: str) -> str:
    """The folder of the images; raises UserError if it is not found."""
    split = path.rpartition("/")[2].removesuffix(".json").removeprefix("captions_")
    published = (split, f"images/{split}", *_FOLDERS) if path.endswith(".json") else _FOLDERS
    return image_folder.find(path, [names], folder, published)[0]
