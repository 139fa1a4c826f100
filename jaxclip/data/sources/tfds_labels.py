"""The labels of data sets that the installed TensorFlow Datasets knows, without their data."""

from __future__ import annotations

import tempfile

from jaxclip.errors import UserError


def label_names(name: str) -> tuple[str, ...]:
    """The names of the classes of a builder, in the order of its labels, from the package's own code and label files.

    Args:
      name: NAME or NAME/CONFIG, such as food101 or voc/2007; the labels are its feature `label` or `labels`.

    Raises:
      UserError: the installed version has no such data set, or knows only the number of its classes before the data set
        is downloaded, as of CIFAR-10.
    """
    import tensorflow_datasets as tfds

    name, _, config = name.partition("/")
    try:
        # An empty folder, or else the features would be those of a data set that was prepared by another version.
        with tempfile.TemporaryDirectory() as empty:
            features = dict(tfds.builder_cls(name)(data_dir=empty, config=config or None).info.features.items())
    except (tfds.core.DatasetNotFoundError, ImportError, OSError, ValueError) as error:
        raise UserError(f"tfds:{name}: TensorFlow Datasets {tfds.__version__} has no labels of it") from error
    names = getattr(features.get("label", features.get("labels")), "names", None) or ()
    if all(label.isdecimal() for label in names):
        raise UserError(f"tfds:{name}: TensorFlow Datasets {tfds.__version__} has no names for its labels")
    return tuple(names)
