"""Sources of image-text records, one module per storage format, opened by the text in a config."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from jaxclip.data.mixture import Mixture
from jaxclip.data.record import Source
from jaxclip.data.storage import exists, resolve
from jaxclip.errors import UserError


def open_source(text: str | Sequence[tuple[str, float]], *, root: str = "") -> Source:
    """Opens the source given in a config.

    Args:
      text: one source or a mixture. A mixture is a list of (source, weight), or the text `0.7 * A + 0.3 * B`, where
        weights are shares of the training examples; `A + B` uses every record of both once per epoch. A source is
        `shapes` or `shapes:SPLIT`; `tfds:NAME` or `tfds:NAME/CONFIG:VERSION`, optionally followed by `[SPLIT]`;
        `folder:PATH` or an existing folder; or a path to files, whose suffix is the format (tar, csv, tsv, jsonl,
        parquet, tfrecord, array_record). A path may be a glob or a range `PATH/{00000..00099}.tar`, local or with the
        scheme of remote storage (`gs://`, `s3://`). A folder holds images, a table named metadata.csv or
        metadata.jsonl (Hugging Face's ImageFolder), or CLIP_benchmark's shards and nshards.txt. The captions of COCO,
        Flickr8k and Flickr30k are opened as published: `PATH/captions_train2017.json`, `PATH/Flickr8k.token.txt`,
        `PATH/results_20130124.token`, `PATH/captions.txt`; optionally followed by `[LIST]`, a text file beside them
        that names the images to use, and by `:FOLDER`, the folder of the images. So are the questions of VQA v2, the
        hypotheses of SNLI-VE and the statements of NLVR2: `PATH/v2_OpenEnded_mscoco_train2014_questions.json`,
        `PATH/snli_ve_train.jsonl`, `PATH/train.json`, optionally followed by `:FOLDER`.
      root: the folder that relative paths start from, and the first place to look for TFDS data sets. Defaults to the
        working directory and TFDS's own folder.

    Raises:
      UserError: the text has none of these forms, or the source cannot be opened.
    """
    if not isinstance(text, str):
        if not text:
            raise UserError("the list of sources is empty; give at least one source")
        return Mixture([_open_one(name, root) for name, _ in text], [weight for _, weight in text])
    terms = _terms(text)
    weighted = [match for match in map(_WEIGHTED.match, terms) if match]
    if weighted and len(weighted) < len(terms):
        raise UserError(f"{text!r}: give either all sources a weight, as in '0.7 * A + 0.3 * B', or none")
    if weighted:
        return open_source([(match[2], float(match[1])) for match in weighted], root=root)
    return _open_one(text, root) if len(terms) == 1 else Mixture([_open_one(term, root) for term in terms])


def names_of(text: str | Sequence[tuple[str, float]]) -> set[str]:
    """The sources that a text for `open_source` names, without their weights."""
    if not isinstance(text, str):
        return {name.strip() for name, _ in text}
    return {match[2] if (match := _WEIGHTED.match(term)) else term for term in _terms(text)}


def _terms(text: str) -> list[str]:
    return re.split(r"\s+\+\s+", text.strip())


# The format of a file by its name: x.tar, x.tfrecord, x.tfrecord-00000-of-00010, x.tfrecord-*.
_KIND = re.compile(r"\.(tar|csv|tsv|jsonl|parquet|tfrecords?|array_?record)(-[\w.*?\[\]{}-]+)?$")
# The captions of COCO and Flickr8k, with [LIST] and :FOLDER.
_CAPTIONS = re.compile(r"(.+?\.(?:json|token|token\.txt)|(?:.+/)?captions\.txt)(?:\[([^]]+)\])?(?::(.+))?", re.I | re.S)
# Files of questions, with :FOLDER.
_QUESTIONS = re.compile(r"(.+?\.jsonl?)(?::(.+))?", re.I | re.S)
_WEIGHTED = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s+\*\s+(.+)", re.DOTALL)


def _open_one(text: str, root: str) -> Source:
    name, _, split = text.partition(":")
    if name == "shapes":
        from jaxclip.data.sources.shapes import Shapes

        # Training scenes are small, so that they are drawn quickly. The other splits are for people to look at.
        return Shapes(split, 128) if split else Shapes("train")
    if name == "tfds":
        from jaxclip.data.sources.tfds import Tfds

        return Tfds(text, root=root)
    if name == "folder" and split:
        return _open_folder(resolve(split, root))
    if questions := _QUESTIONS.fullmatch(text):
        from jaxclip.data.sources.question_file import QuestionFile, reader_of

        path, folder = questions.groups(default="")
        path = resolve(path, root)
        if reader := reader_of(path):
            return QuestionFile(path, reader, folder and resolve(folder, root))
    if captions := _CAPTIONS.fullmatch(text):
        from jaxclip.data.sources.caption_file import CaptionFile

        path, names, folder = captions.groups(default="")
        return CaptionFile(resolve(path, root), names, folder and resolve(folder, root))
    path = resolve(text, root)
    kind = _KIND.search(path.rpartition("/")[2].lower())
    match kind and kind[1]:
        case "tar":
            from jaxclip.data.sources.tar import TarShards

            return TarShards(path)
        case "csv" | "tsv" | "jsonl":
            from jaxclip.data.sources.table import Table

            return Table(path)
        case "parquet":
            from jaxclip.data.sources.parquet import Parquet

            return Parquet(path)
        case "tfrecord" | "tfrecords":
            from jaxclip.data.sources.tfrecord import TfRecords

            return TfRecords(path)
        case "array_record" | "arrayrecord":
            from jaxclip.data.sources.array_record import ArrayRecords

            return ArrayRecords(path)
    if text and pathlib.Path(path).is_dir():
        return _open_folder(path)
    raise UserError(
        f"{text!r} is not a data source; write shapes, shapes:SPLIT, tfds:NAME, folder:PATH, or a path to files, as in "
        "PATH.tar, PATH/*.tar, PATH/{00000..00099}.tar, PATH/*.parquet, PATH/*.tfrecord, PATH/*.array_record, "
        "PATH.csv, PATH.tsv, PATH.jsonl, PATH/captions_train2017.json, PATH/Flickr8k.token.txt, "
        "PATH/v2_OpenEnded_mscoco_train2014_questions.json, PATH/snli_ve_train.jsonl; mix sources as in "
        "'0.7 * A + 0.3 * B'"
    )


def _open_folder(path: str) -> Source:
    from jaxclip.data.sources import benchmark_folder
    from jaxclip.data.sources.folder import Folder
    from jaxclip.data.sources.table import Table
    from jaxclip.data.sources.tar import TarShards

    for table in ("metadata.csv", "metadata.jsonl"):
        if exists(f"{path.rstrip('/')}/{table}"):
            return Table(f"{path.rstrip('/')}/{table}")
    found = benchmark_folder.find(path)
    return TarShards(found.shards, found.class_names) if found else Folder(path)
