"""Parser of records in serialized tf.train.Example form, used by TFRecord, ArrayRecord and TFDS sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxclip.data.record import LARGEST_CAPTION, LARGEST_IMAGE, Record, Skip, class_index, clean_captions
from jaxclip.errors import UserError

# A longer record contains too large an image or caption, and is not read.
LARGEST_EXAMPLE = LARGEST_IMAGE + LARGEST_CAPTION


@dataclasses.dataclass(frozen=True)
class Features:
    """Candidate feature names for each part of a record; the first feature that is not empty is used.

    Attributes:
      images: names of encoded images, as bytes.
      captions: names of one or several texts.
      labels: names of class indices.
      class_names: the names that labels index; if empty, any index is valid.
    """

    # The names used by TFDS, TensorFlow's examples and object detection (image/encoded, image/class/label), im2txt and
    # Conceptual Captions (image/data, image/caption, caption/string), and webdataset's extensions. A class name
    # (image/class/text) is the last resort for a caption.
    images: tuple[str, ...] = ("image/encoded", "image/data", "image", "jpg", "jpeg", "png", "webp", "image_bytes")
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

        If no caption features are configured, the class name is the caption.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            example = tf_example_pb2.Example.FromString(data)
            stored = example.features.feature
            image = next(iter(_values(stored, self.images, "bytes_list")), None)
            texts = _values(stored, self.captions, "bytes_list")
            labels = _values(stored, self.labels, "int64_list")
        except Exception:  # protobuf has no common exception class
            return Skip("unreadable record", key)
        if not stored:
            return Skip("unreadable record", key)
        if not image:
            return Skip("no image", key)
        if len(image) > LARGEST_IMAGE:
            return Skip("image file too large", key)
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
        """Checks that at least one of these examples is a record.

        Raises:
          UserError: no example is a record; the message lists the features that exist and those that were looked for.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        features: set[str] = set()
        reasons: set[str] = set()
        for data in examples:
            record = self.record(data, where)
            if isinstance(record, Record):
                return
            reasons.add(record.reason)
            if record.reason != "unreadable record":
                features |= set(tf_example_pb2.Example.FromString(data).features.feature)
        if not features:
            raise UserError(f"{where} contains no tf.train.Example with features; write the records in that form")
        part, names = ("an image", self.images) if "no image" in reasons else ("captions", self.captions + self.labels)
        listed = ", ".join(sorted(features)[:12])
        raise UserError(f"{where} has the features {listed}: looked for {part} under {', '.join(names)}")


def _values(stored, names: tuple[str, ...], kind: str) -> list:
    """The values of the first of these features that has values of that kind."""
    for name in names:
        if name in stored and (values := getattr(stored[name], kind).value):
            return list(values)
    return []
