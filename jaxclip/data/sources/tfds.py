"""Source that reads data sets prepared by TensorFlow Datasets from their ArrayRecord files.

`python -m jaxclip.data.sources.tfds FOLDER` adds ArrayRecord files to a data set that was prepared as TFRecord. Only
this command imports TensorFlow.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np

from jaxclip.data.record import Record, Skip
from jaxclip.data.sources.tf_example import Features
from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.progress import phase

# Caption features of TFDS's data sets, in order of preference: coco_captions has captions/text, the Flickr sets have
# captions, and others have one caption per image under one of the other names.
_CAPTION_FEATURES = ("captions/text", "captions", "caption", "text", "title")

_FORM = re.compile(r"tfds:(?P<name>\w+(/[\w\-.]+)?(:[\d.*]+)?)(\[(?P<split>.+)\])?")


class Tfds:
    """A split of a prepared TFDS data set.

    The image is the feature `image`, as stored. The captions are the first existing feature of captions/text, captions,
    caption, text and title, or else the class name of the feature `label`. The label is returned in both cases.
    """

    chunk_ends = None

    def __init__(self, text: str, *, root: str = ""):
        """Opens a data set in `root`, `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`.

        Args:
          text: `tfds:NAME` or `tfds:NAME/CONFIG:VERSION`, followed by `[SPLIT]` for a split other than train
            (`tfds:coco_captions[val]`, `tfds:coco_captions[train[:10%]]`).
          root: a folder of TFDS data sets, which is searched first.

        Raises:
          UserError: the text has another form; the data set is unknown, not prepared, not prepared as ArrayRecord, or
            incomplete; the split does not exist; there is no image feature, or neither a caption nor a class.
        """
        match = _FORM.fullmatch(text)
        if not match:
            raise UserError(f"{text}: write tfds:NAME, tfds:NAME/CONFIG:VERSION or tfds:NAME[SPLIT]")
        builder = _prepared(match["name"], root)
        self._text, self._split = f"tfds:{match['name']}", match["split"] or "train"
        self._records = self._open(builder)
        self._features = self._choose_features(builder.info.features)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        """The records of `ids` in order, with a `Skip` for each that is damaged or has neither caption nor label."""
        return [self._record(int(index)) for index in ids]

    def _record(self, index: int) -> Record | Skip:
        key = f"{self._text}[{self._split}]:{index}"
        try:
            data = self._records[index]
        except Exception:  # array_record has no exception class of its own for damaged files
            return Skip("unreadable record", key)
        return self._features.record(data, key)

    def _open(self, builder):
        """The records of the split as a sequence of serialized tf.train.Example."""
        import tensorflow_datasets as tfds

        try:
            records = builder.as_data_source(
                split=self._split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format=tfds.core.FileFormat.ARRAY_RECORD,
            )
            missing = [path for path in builder.info.splits[self._split].filepaths if not path.exists()]
        except NotImplementedError:
            raise UserError(
                f"{self._text} is stored in {builder.data_path} as {builder.info.file_format.value}, which cannot be "
                f"read by position; convert it with `python -m jaxclip.data.sources.tfds {builder.data_path}`"
            ) from None
        except (ValueError, KeyError, AssertionError):
            splits = ", ".join(builder.info.splits)
            raise UserError(f"{self._text} has no split {self._split}; its splits are {splits}") from None
        if missing:
            raise UserError(f"{self._text} is incomplete: {missing[0]} does not exist; prepare the data set again")
        return records

    def _choose_features(self, features) -> Features:
        """Determines which features are the image, the captions and the label.

        Parsing with the data set's own features takes ten times as long, 0.1 ms per record, even with SkipDecoding.
        """
        import tensorflow_datasets as tfds

        stored = tfds.core.utils.flatten_nest_dict(features.get_serialized_info())
        captions = [name for name in _CAPTION_FEATURES if _is_text(stored.get(name))][:1]
        top = dict(features.items())
        image, label = top.get("image"), top.get("label")
        self.class_names: Sequence[str] = label.names if isinstance(label, tfds.features.ClassLabel) else []
        if not isinstance(image, tfds.features.Image):
            expected = "an image under image"
        elif not captions and not self.class_names:
            expected = f"captions under {', '.join(_CAPTION_FEATURES)}, or a class label under label"
        else:
            labels = ("label",) if self.class_names else ()
            return Features(("image",), tuple(captions), labels, self.class_names)
        raise UserError(f"{self._text} has the features {', '.join(sorted(stored))}: looked for {expected}")


def _is_text(feature) -> bool:
    """Whether a feature is stored as one text or a flat list of texts."""
    return feature is not None and np.dtype(feature.np_dtype).kind == "O" and len(feature.shape) <= 1


def _folders(root: str) -> list[pathlib.Path]:
    """The folders to search for TFDS data sets, in order."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [pathlib.Path(folder).expanduser() for folder in dict.fromkeys((root, default)) if folder]


def _prepared(name: str, root: str):
    """The TFDS builder of a data set that is prepared on disk."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    folders = _folders(root)
    for folder in folders:
        try:
            # From the files alone: accepts any version, and does not load the code that prepared the data set.
            return read_only_builder.builder_from_files(name, data_dir=str(folder))
        except tfds.core.DatasetNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"tfds:{name} in {folder} cannot be opened: {reason}") from error
    where = " or ".join(map(str, folders))
    known = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in known:
        raise UserError(f"tfds:{name} is neither a data set of TFDS nor a folder in {where}; check the name")
    raise UserError(
        f'tfds:{name} is not in {where}; prepare it with `python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\"`, or choose other data"
    )


def convert(folder: str) -> int:
    """Adds ArrayRecord files to a data set prepared as TFRecord, beside the existing files.

    This replaces `tfds convert_format`, which does not start without apache-beam. Each file is written under a
    temporary name first, and `dataset_info.json` is updated last, so an interrupted command can be run again.

    Args:
      folder: the folder of the data set's `dataset_info.json` (NAME/CONFIG/VERSION).

    Returns:
      The number of records in the data set.

    Raises:
      UserError: the folder does not contain a data set prepared as TFRecord.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} does not contain a data set prepared by TFDS; give the folder of its dataset_info.json"
        ) from error
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.TFRECORD not in formats:
        names = ", ".join(sorted(known.value for known in formats))
        raise UserError(f"{folder} is prepared as {names}; only TFRecord can be converted")
    import tensorflow as tf

    converted = 0
    for split in builder.info.splits.values():
        for path in split.filepaths:
            target = path.with_name(path.name.replace(".tfrecord-", ".array_record-"))
            unfinished = path.with_name(f"incomplete.{target.name}")
            # One record per group, as TFDS writes it, for random access.
            writer = array_record_module.ArrayRecordWriter(os.fspath(unfinished), "group_size:1")
            for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
                writer.write(record)
                converted += 1
            writer.close()
            unfinished.replace(target)
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        builder.info.add_alternative_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        builder.info.write_dataset_info_json(folder)
    return converted


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.data.sources.tfds",
        description="Adds ArrayRecord files to a data set that TFDS prepared as TFRecord, beside the existing files.",
    )
    parser.add_argument("folder", help="of the data set's dataset_info.json, such as tensorflow_datasets/mnist/3.0.1")
    folder = parser.parse_args(argv).folder
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on GPUs are of no use here.

    def command(_: object) -> None:
        with phase(f"converting {folder}"):
            count = convert(folder)
        print(f"wrote {count:,} records as ArrayRecord")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
