"""A folder of pictures as a source: with a subfolder for each class, or a text beside each picture, or both."""

from __future__ import annotations

import array
import os
from collections.abc import Iterator, Sequence

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.single_file import read_caption, read_picture
from jaxclip.data.storage import filesystem, is_remote
from jaxclip.errors import UserError

_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class Folder:
    """The pictures in a folder and below, whatever the case of their extensions; hidden files and folders are not.

    The folder's subfolders are the classes, numbered in the order of their names; what lies deeper belongs to them
    too. A picture's caption is the text in `NAME.txt` beside its `NAME.jpg`; without one, its class's name with spaces
    for underscores. Records come folder by folder, by name within each.

    Links to pictures, and links in place of a class's folder, are followed wherever they lead: sets are often put
    together from links, and what they lead to is only read. Links to folders further down are not: they may lead in
    circles. What is neither a file nor a link, such as a pipe, is left out.
    """

    chunk_ends = None

    def __init__(self, path: str):
        """Lists the folder; pictures are opened when they are read.

        Args:
          path: of the folder, local or remote.

        Raises:
          UserError: it is missing, cannot be listed or holds no pictures.
        """
        self._path = path.rstrip("/")
        self._names: list[str] = []  # paths from the folder on
        self._texts = bytearray()  # for each, whether there is a text beside it
        self._labels = array.array("l")  # and its class; -1 for none
        try:
            found = list(_remote(path) if is_remote(path) else _local(path))
            # By the bare names, as everybody numbers them: "red" before "red fox", which "red/" is not.
            tops = sorted({folder.partition("/")[0] for folder, _ in found} - {""})
            classes = {top: number for number, top in enumerate(tops)}
            for folder, names in found:
                self._add(folder, sorted(names), classes.get(folder.partition("/")[0], -1))
        except OSError as error:
            raise UserError(f"{error.filename or path} cannot be listed: {error.strerror or error}") from error
        if not self._names:
            wanted = ", ".join(_EXTENSIONS)
            raise UserError(f"{path} holds no pictures, neither itself nor in folders of classes: looked for {wanted}")
        labelled = max(self._labels) >= 0
        self.class_names: Sequence[str] = [_text(name).replace("_", " ") for name in classes] if labelled else []

    def __len__(self) -> int:
        return len(self._names)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids`, in their order; a `Skip` where one cannot be read or has no caption and no class."""
        return [self._record(index) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        name, label = self._names[index], self._labels[index]
        key = f"{_text(self._path.rpartition('/')[2])}:{_text(name)}"
        caption: str | Skip = ""
        if self._texts[index]:
            caption = read_caption(f"{self._path}/{name.rpartition('.')[0]}.txt", key)
        if isinstance(caption, Skip):
            return caption
        caption = caption or (self.class_names[label] if label >= 0 else "")
        if not caption:
            return Skip("no caption", key)
        picture = read_picture(f"{self._path}/{name}", key)
        return picture if isinstance(picture, Skip) else Record(picture, (caption,), key, label if label >= 0 else None)

    def _add(self, folder: str, names: list[str], label: int) -> None:
        """Notes the pictures among the files of a folder."""
        texts = {name[:-4] for name in names if name.endswith(".txt")}
        for name in names:
            stem, _, extension = name.rpartition(".")
            if stem and extension.lower() in _EXTENSIONS and not name.startswith("."):
                self._names.append(folder + name)
                self._texts.append(stem in texts)
                self._labels.append(label)


def _text(name: str) -> str:
    """A file's name as valid text: its bytes may be in no encoding."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _local(path: str) -> Iterator[tuple[str, list[str]]]:
    """A folder ("") and all below it ("cat/", "cat/old/", ...), with the names of the files in each."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        files, folders = [], []
        with os.scandir(f"{path}/{folder}") as entries:
            for entry in entries:
                link = entry.is_symlink()
                # Not entry.is_dir: it raises for links that lead in a circle.
                if entry.is_dir(follow_symlinks=False) or (link and not folder and os.path.isdir(entry.path)):
                    if not entry.name.startswith("."):
                        folders.append(f"{folder}{entry.name}/")
                elif link or entry.is_file(follow_symlinks=False):  # a link to nowhere shows when it is read
                    files.append(entry.name)
        yield folder, files
        waiting += sorted(folders, reverse=True)


def _remote(path: str) -> Iterator[tuple[str, list[str]]]:
    """As `_local`, of a remote folder."""
    try:
        storage = filesystem(path)
        storage.invalidate_cache()  # or what was added since the folder was first listed would not be there
        start = len(storage._strip_protocol(path).rstrip("/")) + 1
        names = [name[start:] for name in storage.find(path)]
    except UserError:
        raise
    except Exception as error:  # each storage library has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, slash, base = name.rpartition("/")
        if not folder.startswith(".") and "/." not in folder:
            folders.setdefault(folder + slash, []).append(base)
    yield from sorted(folders.items())
