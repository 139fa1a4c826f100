"""The base class of evaluators, and the result of an evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, UInt8

from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a result, as the report shows it. Those of several data sets with one title and columns are joined.

    Attributes:
      title: heading of the first column, which holds the names of the data sets and of the rows.
      columns: headings of the others, the figure that people quote first.
      rows: the cells of each row by its name; a table of one row may name it "". Floats are drawn over the training
        steps: of one data set each column, of several data sets the first. Counts are ints and are not drawn. None is a
        figure that does not exist.
      fractions: whether numbers are fractions, which are shown as percentages.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | int | str | None, ...]]
    fractions: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with a text, as the report shows it.

    Attributes:
      image: RGB pixels; the report shows it at 112 pixels.
      text: what stands under it, such as the model's caption.
      parts: smaller images with texts beside it, such as the words of a caption with what each was attending to.
      right: whether the model's answer is right, by which the report sorts them; None if that is not asked.
    """

    image: UInt8[np.ndarray, "height width 3"]
    text: str
    parts: tuple[Example, ...] = ()
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation gives.

    Attributes:
      metrics: figures by name, fractions and not percentages; None for one that does not exist for this data.
      summary: the line that people quote, without the name of the data set.
      headline: the figure on the report's card and the words under it ("93.4%", "zero-shot top-1"); by default the
        first metric.
      tables: for the report; by default one table of the metrics.
      examples: images for the report, a few dozen at most.
      further: other keys of the JSON file, such as CLIP_benchmark's `classnames`; JSON values.
      outcomes: by the names of metrics that are shares of examples, whether each example was right; the metric is their
        mean. Intervals of the metric come from them.
      outcomes_of: of which examples these are, and in which order; see `examples_digest`. Results with the same one are
        compared example by example.
    """

    metrics: Mapping[str, float | None]
    summary: str
    headline: tuple[str, str] | None = None
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outcomes: Mapping[str, Bool[np.ndarray, "_"]] = dataclasses.field(default_factory=dict)
    outcomes_of: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The base of all evaluators; the fields of one are its keys in a config.

    Attributes:
      data: the source; see `jaxclip.data.sources.open_source`.
      needs: functions that the method's model must have, by name; see `jaxclip.methods.Method`. This is found out
        before any data is read.
    """

    needs: ClassVar[tuple[str, ...]] = ("encode_image", "encode_text")

    data: str

    def prepare(self, source: Source, root: str) -> Any:
        """What `run` needs besides the data, such as the names of the classes, read before any training.

        Args:
          source: `data`, opened.
          root: the folder that relative paths start from.

        Raises:
          UserError: it cannot be had. The message begins with the key at fault.
        """

    def lacks(self, record: Record, prepared: Any) -> str:
        """Why a record cannot be evaluated, such as "no caption"; empty if it can. Asked of a few before any training.

        Args:
          record: one whose image can be read.
          prepared: what `prepare` gave.

        Raises:
          UserError: the record shows that the data cannot be evaluated.
        """
        return ""

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Any) -> Result:
        """Evaluates a model; every process takes part, and gets the same result.

        Args:
          encoder: computes the functions that `needs` names, over all devices and processes.
          variables: of the model; the first argument of the encoder's functions.
          source: `data`, opened.
          skips: where records that cannot be read are counted.
          prepared: what `prepare` gave.

        Raises:
          UserError: the data lacks what is evaluated.
        """
        raise NotImplementedError


def task_of(evaluator: Evaluator) -> str:
    """The `task` that names an evaluator in a config: its module's name."""
    return type(evaluator).__module__.rpartition(".")[2]


def examples_digest(examples: Sequence[Any]) -> str:
    """What two sets of examples have in common only if they hold the same ones in the same order.

    Args:
      examples: of each a JSON value that says which one it is, such as its image's digest and its label; never what a
        model made of it.
    """
    return hashlib.blake2b(json.dumps(list(examples)).encode(), digest_size=12).hexdigest()
