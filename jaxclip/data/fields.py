"""What the fields of a record may be, whatever they are read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# In bytes. No picture or caption to train on comes near these; one that does is damaged, or means harm.
LARGEST_PICTURE = 256 << 20
LARGEST_CAPTION = 16 << 20

_LARGEST_LABEL = 999_999_999


def captions(texts: Iterable[bytes]) -> tuple[str, ...]:
    """The captions in UTF-8 texts: stripped, without the empty ones; bytes in no encoding become U+FFFD."""
    stripped = (text.decode("utf-8", errors="replace").strip() for text in texts)
    return tuple(text for text in stripped if text)


def class_index(label: int | None, class_names: Sequence[str]) -> int | None:
    """A label that can be one; else None, as for the negative ones that stand for a class that is not told."""
    most = len(class_names) - 1 if class_names else _LARGEST_LABEL
    return label if label is not None and 0 <= label <= most else None
