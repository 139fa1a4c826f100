"""What files of weights do not always say, and how a person is asked for it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, get_args

from jaxclip.config import PixelsConfig, to_dict
from jaxclip.errors import UserError
from jaxclip.towers.layers import Activation

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# By the name that a person gives: `config.PixelsConfig`'s keys, and whose weights want it.
PREPROCESSING: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({}, "OpenAI's and most others: the short side resized, the centre, CLIP's mean and deviation"),
    "inception": (HALF, "LAION-2B's L/14: the same with 0.5 and 0.5"),
    "siglip": (HALF | {"resize": "squash"}, "SigLIP's: resized to a square, 0.5 and 0.5"),
}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a person says of weights whose files do not say it.

    Attributes:
      activation: of both towers, or of the image and the text tower with a comma between ("gelu,gelu_tanh").
      preprocess: a key of `PREPROCESSING`, or the config itself.
      heads: of the image tower's attention.
      tokenizer: path of the vocabulary.
    """

    activation: str | None = None
    preprocess: str | PixelsConfig | None = None
    heads: int | None = None
    tokenizer: str | os.PathLike[str] | None = None

    def __post_init__(self):
        if self.activation is not None and not set(self.activations()) <= set(get_args(Activation)):
            raise UserError(f"activation={self.activation!r} must be {_ACTIVATIONS}")
        if isinstance(self.preprocess, str) and self.preprocess not in PREPROCESSING:
            raise UserError(f"preprocess={self.preprocess!r} must be {_PREPROCESS}")
        if self.heads is not None and self.heads < 1:
            raise UserError(f"heads={self.heads} must be at least 1")

    def activations(self) -> tuple[str, str]:
        """Those of the image and of the text tower, where there is an answer."""
        image, comma, text = (self.activation or "").partition(",")
        return image, text if comma else image


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the answers' flags to a command line."""
    group = parser.add_argument_group("what public weights may not say themselves (an error asks for it)")
    group.add_argument(
        "--activation", help=f"of both towers, or the image and the text tower's: {', '.join(get_args(Activation))}"
    )
    group.add_argument("--preprocess", help=f"of pictures: {', '.join(PREPROCESSING)}")
    group.add_argument("--heads", type=int, help="of the image tower's attention")
    group.add_argument("--tokenizer", help="path of the vocabulary")


def from_flags(arguments: argparse.Namespace) -> Answers:
    """The answers of a parsed command line. Raises UserError where one is none of the choices."""
    return Answers(arguments.activation, arguments.preprocess, arguments.heads, arguments.tokenizer)


class Questions:
    """Collects what must be asked, so that one error asks for all of it."""

    def __init__(self, source: str, answers: Answers):
        self.source = source
        self.answers = answers
        self._open: list[str] = []

    def activations(self) -> tuple[str, str]:
        """Of the image and the text tower."""
        if self.answers.activation is None:
            self._open.append(f"activation={_ACTIVATIONS}")
            return "gelu", "gelu"
        return self.answers.activations()

    def pixels(self) -> dict[str, Any]:
        """Of `config.PixelsConfig`."""
        if self.answers.preprocess is None:
            self._open.append(f"preprocess={_PREPROCESS}")
            return {}
        if isinstance(self.answers.preprocess, str):
            return dict(PREPROCESSING[self.answers.preprocess][0])
        return to_dict(self.answers.preprocess)

    def heads(self, width: int) -> int:
        """Of an image tower of this width."""
        if self.answers.heads is None:
            self._open.append(f"heads=NUMBER of the image tower of width {width} (its heads are often 64 wide)")
            return 1
        return self.answers.heads

    def ask(self, question: str) -> None:
        """Adds a question in its own words."""
        self._open.append(question)

    def check(self) -> None:
        """Raises UserError where something was asked; what the methods above gave is only there to go on until here."""
        if self._open:
            raise UserError(
                f"{self.source} does not say all that its weights need; give {'; '.join(self._open)} "
                "(to jaxclip.load, or as --activation=... and so on on the command line)"
            )


_ACTIVATIONS = (
    "'quick_gelu' (OpenAI's, MetaCLIP's and DFN's weights, names ending in -quickgelu), 'gelu' (LAION's, DataComp's) "
    "or 'gelu_tanh' (Google's), or two of them with a comma, the image tower's first"
)
_PREPROCESS = " or ".join(f"'{name}' ({whose})" for name, (_, whose) in PREPROCESSING.items())
