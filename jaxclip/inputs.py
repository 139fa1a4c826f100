"""The inputs of a method: which arrays a batch holds, for training, validation, evaluation and planning alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxclip.config import PixelsConfig


@dataclasses.dataclass(frozen=True)
class Image:
    """A square image, uint8 [batch, size, size, 3].

    Attributes:
      size: pixels of a side.
      pixels: how images are prepared at evaluation and normalized.
      view: the augmentation in training: a key of `config.data.views`, or "" for that of `config.data` itself. Inputs
        of one record are cropped and augmented independently of each other.
      number: which image of the record; 0 for its first, which every record has.
    """

    size: int
    pixels: PixelsConfig = PixelsConfig()
    view: str = ""
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Text:
    """A text: int32 NAME [batch, length] and NAME_end [batch], the position of its end token.

    Attributes:
      length: tokens, start and end included.
      field: what of the record it is: a caption, chosen as `config.data.captions` says, or a question about its image,
        chosen in the same way.
    """

    length: int
    field: Literal["caption", "question"] = "caption"


@dataclasses.dataclass(frozen=True)
class Answers:
    """Weighted answers to the question that was chosen.

    They are int32 NAME [batch, count, length], NAME_end [batch, count], float32 NAME_weight [batch, count]. A question
    with fewer answers has a weight of 0 in the other places; of one with more, the heaviest are taken.

    Attributes:
      length: tokens of an answer, start and end included.
      count: answers per question.
    """

    length: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tags:
    """Tags of a record as a multi-hot vector, float32 [batch, count].

    Attributes:
      count: how many tags there are; others are ignored.
    """

    count: int


@dataclasses.dataclass(frozen=True)
class Label:
    """The class index, int32 [batch]: of the chosen question if the record has labeled ones, else of the record.

    It is -1 if there is none.
    """


@dataclasses.dataclass(frozen=True)
class RecordId:
    """The number of a record in its source, int32 [batch], the same in every epoch: for banks of one entry a record.

    Attributes:
      count: how many numbers the method has room for, its key `records`; 0 for any.
    """

    count: int = 0


Input = Image | Text | Answers | Tags | Label | RecordId
Inputs = Mapping[str, Input]


def shapes(inputs: Inputs, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch: their shapes and dtypes.

    >>> shapes({"image": Image(32), "text": Text(8)}, 4)["text"].shape
    (4, 8)
    """

    def array(dtype: jnp.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    arrays = {}
    for name, kind in inputs.items():
        match kind:
            case Image(size=size):
                arrays[name] = array(jnp.uint8, size, size, 3)
            case Text(length=length):
                arrays[name] = array(jnp.int32, length)
                arrays[f"{name}_end"] = array(jnp.int32)
            case Answers(length=length, count=count):
                arrays[name] = array(jnp.int32, count, length)
                arrays[f"{name}_end"] = array(jnp.int32, count)
                arrays[f"{name}_weight"] = array(jnp.float32, count)
            case Tags(count=count):
                arrays[name] = array(jnp.float32, count)
            case Label() | RecordId():
                arrays[name] = array(jnp.int32)
    return arrays


def first_image(inputs: Inputs) -> Image | None:
    """The image that evaluations encode: the first input of that kind; None if there is none."""
    return next((kind for kind in inputs.values() if isinstance(kind, Image)), None)


def first_text(inputs: Inputs) -> Text | None:
    """The text that evaluations encode: the first input of that kind; None if there is none."""
    return next((kind for kind in inputs.values() if isinstance(kind, Text)), None)
