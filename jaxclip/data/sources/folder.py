"""Source that reads a folder of images, with class subfolders, caption files, or both."""

from __future__ import annotations

import array
import os
from collections.abc import Iterator, Sequence

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.single_file import read_caption, read_image
from jaxclip.data.storage import filesystem, is_remote
from jaxclip.errors import UserError

_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class Folder:
    """The images in a folder and its subfolders.

    The subfolders are the classes, numbered in alphabetical order; files at any depth below belong to the class. The
    caption of `NAME.jpg` is the text in `NAME.txt` beside it, or else the class name with spaces for underscores.
    Records are ordered by folder, then by name. Extensions may be in upper or lower case; hidden files and folders are
    ignored.

    Links to images and to class folders are followed, because data sets are often assembled from links. Links to
    deeper folders are not followed, because they may form cycles. Pipes and other special files are ignored.
    """

    chunk_ends = None

    def __init__(self, path: str):
        """Lists the folder; images are opened when they are read.

        Args:
          path: of the folder, local or remote.

        Raises:
          UserError: the folder does not exist, cannot be listed, or contains no images.
        """
        self._path = path.rstrip("/")
        self._names: list[str] = []  # paths relative to the folder
        self._texts = bytearray()  # whether each image has a caption file
        self._labels = array.array("l")  # each image's class; -1 for none
        try:
            listing = list(_remote(path) if is_remote(path) else _local(path))
            # Sorted without the slash, as is usual: "red" comes before "red fox", but "red/" would not.
            tops = sorted({folder.partition("/")[0] for folder, _ in listing} - {""})
            classes = {top: number for number, top in enumerate(tops)}
            for folder, names in listing:
                self._add(folder, sorted(names), classes.get(folder.partition("/")[0], -1))
        except OSError as error:
            raise UserError(f"{error.filename or path} cannot be listed: {error.strerror or error}") from error
        if not self._names:
            extensions = ", ".join(_EXTENSIONS)
            raise UserError(f"{path} contains no images, nor do its class folders; looked for {extensions}")
        labeled = max(self._labels) >= 0
        self.class_names: Sequence[str] = [_text(name).replace("_", " ") for name in classes] if labeled else []

    def __len__(self) -> int:
        return len(self._names)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each that is unreadable or has neither caption nor class."""
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
        image = read_image(f"{self._path}/{name}", key)
        return image if isinstance(image, Skip) else Record(image, (caption,), key, label if label >= 0 else None)

    def _add(self, folder: str, names: list[str], label: int) -> None:
        """Adds the images among the files of a folder."""
        texts = {name[:-4] for name in names if name.endswith(".txt")}
        for name in names:
            stem, _, extension = name.rpartition(".")
            if stem and extension.lower() in _EXTENSIONS and not name.startswith("."):
                self._names.append(folder + name)
                self._texts.append(stem in texts)
                self._labels.append(label)


def _text(name: str) -> str:
    """A file name as valid text, even if its bytes are not valid in the file system's encoding."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _local(path: str) -> Iterator[tuple[str, list[str]]]:
    """The folder ("") and all subfolders ("cat/", "cat/old/", ...), with the names of the files in each."""
    pending = [""]
    while pending:
        folder = pending.pop()
        files, folders = [], []
        with os.scandir(f"{path}/{folder}") as entries:
            for entry in entries:
                link = entry.is_symlink()
                # os.path.isdir, because entry.is_dir raises for cyclic links.
                if entry.is_dir(follow_symlinks=False) or (link and not folder and os.path.isdir(entry.path)):
                    if not entry.name.startswith("."):
                        folders.append(f"{folder}{entry.name}/")
                elif link or entry.is_file(follow_symlinks=False):  # broken links are skipped when they are read
                    files.append(entry.name)
        yield folder, files
        pending += sorted(folders, reverse=True)


def _remote(path: str) -> Iterator[tuple[str, list[str]]]:
    """As `_local`, for a remote folder."""
    try:
        storage = filesystem(path)
        storage.invalidate_cache()  # otherwise files added since the folder was first listed would be missing
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
