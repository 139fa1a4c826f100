"""The picture, captions and label in a serialized tf.train.Example, the record of TFRecord and ArrayRecord files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxclip.data.record import LARGEST_CAPTION, LARGEST_PICTURE, Record, Skip, class_index, clean_captions
from jaxclip.errors import UserError

# A longer record holds too large a picture or caption, and is not read.
LARGEST_EXAMPLE = LARGEST_PICTURE + LARGEST_CAPTION


@dataclasses.dataclass(frozen=True)
class Features:
    """Where in an example its parts are: names of features, of which the first that holds something counts.

    Attributes:
      pictures: encoded pictures, as bytes.
      captions: one or several texts.
      labels: class indices.
      class_names: what labels index; empty where that is not known, and any index counts.
    """

    # Names that writers of TFRecord files give them: TFDS, TensorFlow's own examples and object detection
    # (image/encoded, image/class/label), im2txt and Conceptual Captions (image/data, image/caption, caption/string),
    # and webdataset's extensions. A name of a class (image/class/text) is the last resort for a caption.
    pictures: tuple[str, ...] = ("image/encoded", "image/data", "image", "jpg", "jpeg", "png", "webp", "image_bytes")
    captions: tuple[str, ...] = (
        "captions/text",
        "captions",
        "caption",
        "image/caption",
        "caption/string",
        "text",
        "txt",
        "title",
        "image/class/text",
    )
    labels: tuple[str, ...] = ("label", "cls", "image/class/label")
    class_names: Sequence[str] = ()

    def record(self, data: bytes, key: str) -> Record | Skip:
        """The record in a serialized example.

        A label of a known class gives the caption where no feature is named for captions.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            example = tf_example_pb2.Example.FromString(data)
            stored = example.features.feature
            image = next(iter(_values(stored, self.pictures, "bytes_list")), None)
            texts = _values(stored, self.captions, "bytes_list")
            labels = _values(stored, self.labels, "int64_list")
        except Exception:  # protobuf has no one class for what it raises
            return Skip("unreadable record", key)
        if not stored:
            return Skip("unreadable record", key)
        if not image:
            return Skip("no picture", key)
        if len(image) > LARGEST_PICTURE:
            return Skip("picture file too large", key)
        if any(len(text) > LARGEST_CAPTION for text in texts):
            return Skip("caption too large", key)
        label = class_index(labels[0] if labels else None, self.class_names)
        captions = clean_captions(texts)
        if label is not None and self.class_names and not self.captions:
            captions = (self.class_names[label],)
        if not captions and label is None:
            return Skip("no caption", key)
        return Record(image, captions, key, label)

    def check(self, examples: Iterable[bytes], where: str) -> None:
        """Looks whether any of these examples is a record.

        Raises:
          UserError: none is; the features that were found and looked for are named.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        found: set[str] = set()
        reasons: set[str] = set()
        for data in examples:
            record = self.record(data, where)
            if isinstance(record, Record):
                return
            reasons.add(record.reason)
            if record.reason != "unreadable record":
                found |= set(tf_example_pb2.Example.FromString(data).features.feature)
        if not found:
            raise UserError(f"{where} holds no tf.train.Example with features: write its records as those")
        wanted = ("a picture", self.pictures) if "no picture" in reasons else ("captions", self.captions + self.labels)
        names = ", ".join(sorted(found)[:12])
        raise UserError(f"{where} has the features {names}: looked for {wanted[0]} under {', '.join(wanted[1])}")


def _values(stored, names: tuple[str, ...], kind: str) -> list:
    """The values of the first of these features that has some of that kind."""
    for name in names:
        if name in stored and (values := getattr(stored[name], kind).value):
            return list(values)
    return []
