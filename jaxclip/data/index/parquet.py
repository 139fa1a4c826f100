"""Index of Parquet files: the columns and row groups from their footers, read once and kept in a cache folder."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence

import tqdm

from jaxclip.data.index.checked import Content, open_checked
from jaxclip.data.index.keep import keep
from jaxclip.data.storage import File, cache_folder, filesystem, fingerprint, is_remote
from jaxclip.errors import UserError

# Accepted column names, in order of preference: those of img2dataset, webdataset and Hugging Face data sets.
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "picture")
_CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
_URL_COLUMNS = ("url", "URL", "image_url")
LARGEST_GROUP = 8 << 30  # bytes of a decoded row group, which is held in memory
_MOST_ROWS = 1 << 40  # rows of a row group, so that sums of valid numbers fit into int64
_FORMAT = 3  # a kept index of another format is built again


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
      image: the column of images, either bytes or structures with a field `bytes`.
      structured: whether images are structures.
      caption: the column of strings or lists of strings; empty for none.
      label: the column of integers; empty for none.
      class_names: the class names that labels index; empty if the files have none.
    """

    image: str
    structured: bool
    caption: str
    label: str
    class_names: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The columns to read from each row group, in pyarrow's notation."""
        image = f"{self.image}.bytes" if self.structured else self.image
        return [name for name in (image, self.caption, self.label) if name]


@dataclasses.dataclass(frozen=True)
class ParquetIndex:
    """The index of a list of Parquet files.

    Attributes:
      columns: the columns, the same in all files.
      groups: for each row group of each file, the number of rows and of decoded bytes.
    """

    columns: Columns
    groups: list[list[tuple[int, int]]]


@contextlib.contextmanager
def open_file(path: str) -> Iterator:
    """Opens a local or remote file as a pyarrow.parquet.ParquetFile."""
    import pyarrow.parquet

    with (
        filesystem(path).open(path, "rb") if is_remote(path) else open(path, "rb") as opened,
        pyarrow.parquet.ParquetFile(opened) as file,
    ):
        yield file


def load_index(pattern: str, files: Sequence[File]) -> ParquetIndex:
    """The index of files: from the cache if they are unchanged, otherwise built and added to the cache.

    Raises:
      UserError: as in `Parquet`.
    """
    place = cache_folder("parquet-index") / f"{fingerprint(files)}.index"
    index = open_checked(place, lambda content: _parse(content, len(files)), whole=True)
    if index is None:
        index = _scan(pattern, files)
        text = json.dumps({"format": _FORMAT} | dataclasses.asdict(index))
        keep(place, lambda file: file.write(text.encode()))
    return index


def _scan(pattern: str, files: Sequence[File]) -> ParquetIndex:
    remote = is_remote(files[0].path)
    with (
        concurrent.futures.ThreadPoolExecutor(max_workers=32 if remote else 8) as pool,
        tqdm.tqdm(total=len(files), desc="opening Parquet files", unit="file", delay=2, file=sys.stderr) as bar,
    ):
        facts = []
        try:
            for columns, groups in pool.map(_facts, files):
                facts.append((columns, groups))
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    columns = facts[0][0]
    for file, (others, _) in zip(files, facts, strict=True):
        if others != columns:
            raise UserError(
                f"{file.path} has other columns or class names than {files[0].path} ({_describe(others)}, not "
                f"{_describe(columns)}): open them as two sources"
            )
    if not any(rows for _, groups in facts for rows, _ in groups):
        raise UserError(f"{pattern} holds no rows: choose other files")
    return ParquetIndex(columns, [groups for _, groups in facts])


def _describe(columns: Columns) -> str:
    classes = f" with {len(columns.class_names)} classes" if columns.class_names else ""
    return ", ".join(columns.names) + classes


def _facts(file: File) -> tuple[Columns, list[tuple[int, int]]]:
    """The columns and row groups of a file."""
    try:
        with open_file(file.path) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            sizes = [(int(group.num_rows), int(group.total_byte_size)) for group in groups]
    except UserError:
        raise
    except Exception as error:  # pyarrow and the storage libraries have no common exception class
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{file.path} cannot be read as a Parquet file, it may be cut: make or fetch it again ({reason})"
        ) from error
    if any(not 0 <= rows < _MOST_ROWS for rows, _ in sizes):
        raise UserError(f"{file.path} cannot be read as a Parquet file: it tells an impossible number of rows")
    largest = max((size for _, size in sizes), default=0)
    if largest > LARGEST_GROUP:
        raise UserError(
            f"{file.path} has a row group of {largest >> 30} GiB, and {LARGEST_GROUP >> 30} GiB are the most that is "
            "read: write it anew with smaller ones (row_group_size=1000 in pyarrow)"
        )
    return _choose(file.path, schema), sizes


def _choose(path: str, schema) -> Columns:
    """Chooses the columns of images, captions and labels by their names and types."""
    from pyarrow import types

    def is_bytes(kind) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_text(kind) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def is_structure(kind) -> bool:
        return types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)

    def is_texts(kind) -> bool:
        return is_text(kind) or ((types.is_list(kind) or types.is_large_list(kind)) and is_text(kind.value_type))

    def first(names: tuple[str, ...], suits) -> str:
        return next((name for name in names if name in kinds and suits(kinds[name])), "")

    kinds = dict(zip(schema.names, schema.types, strict=True))
    image = first(_IMAGE_COLUMNS, lambda kind: is_bytes(kind) or is_structure(kind))
    caption = first(_CAPTION_COLUMNS, is_texts)
    label = first(_LABEL_COLUMNS, types.is_integer)
    found = ", ".join(schema.names[:20]) or "none"
    if not image and first(_URL_COLUMNS, is_text):
        raise UserError(
            f"{path} names images by their urls and holds none: download them first with img2dataset, for instance "
            "with --output_format=webdataset"
        )
    if not image:
        raise UserError(f"{path} has no column of images as bytes ({', '.join(_IMAGE_COLUMNS)}): found {found}")
    if not caption and not label:
        wanted = ", ".join(_CAPTION_COLUMNS + _LABEL_COLUMNS)
        raise UserError(f"{path} has no column of captions or class indices ({wanted}): found {found}")
    class_names = _class_names(schema.metadata or {}, label)
    return Columns(image, is_structure(kinds[image]), caption, label, class_names)


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """The names of a ClassLabel in the JSON that Hugging Face's `datasets` adds to a schema, if any."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    # JSON can contain a lone surrogate, which tokenizers reject: it becomes "?".
    return tuple(name.encode("utf-8", errors="replace").decode() for name in names)


def _parse(content: Content, files: int) -> ParquetIndex:
    """The index of so many files from its content; raises ValueError if it is damaged or of another format."""
    try:
        kept = json.loads(content.read(0, content.size))
        if kept["format"] != _FORMAT or len(kept["groups"]) != files:
            raise ValueError("an index of another format")
        columns = Columns(**kept["columns"] | {"class_names": tuple(kept["columns"]["class_names"])})
        return ParquetIndex(columns, [[(int(rows), int(size)) for rows, size in groups] for groups in kept["groups"]])
    except (KeyError, TypeError) as error:
        raise ValueError("no index") from error
