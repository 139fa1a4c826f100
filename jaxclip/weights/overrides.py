"""Settings that weight files may omit, and the error that asks the user for them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, get_args

from jaxclip.config import PixelsConfig
from jaxclip.errors import UserError
from jaxclip.parsing import to_dict
from jaxclip.towers.layers import Activation

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# By the user's name for it: the keys of `config.PixelsConfig`, and the weights that need them.
PREPROCESSING: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({}, "OpenAI's and most others: the short side resized, the center, CLIP's mean and deviation"),
    "inception": (HALF, "LAION-2B's L/14: the same with 0.5 and 0.5"),
    "siglip": (HALF | {"resize": "squash"}, "SigLIP's: resized to a square, 0.5 and 0.5"),
}


@dataclasses.dataclass(frozen=True)
class Answers:
    """The user's settings for weights whose files omit them.

    Attributes:
      activation: of both towers, or of the image and the text tower, separated by a comma ("gelu,gelu_tanh").
      preprocess: a key of `PREPROCESSING`, or the config itself.
      heads: the number of attention heads of the image tower, or of the image and the text tower, separated by a comma
        ("16,20"); a side that is not needed may be empty (",20").
      tokenizer: path of the vocabulary, which takes precedence over the files.
      image_size: the image size in pixels, for files whose number of patches fits several sizes. Any other size is a
        size to which the caller resizes the positions, for which the original size does not matter.
    """

    activation: str | None = None
    preprocess: str | PixelsConfig | None = None
    heads: int | str | None = None
    tokenizer: str | os.PathLike[str] | None = None
    image_size: int | None = None

    def __post_init__(self):
        if self.activation is not None and not set(self.activations()) <= set(get_args(Activation)):
            raise UserError(f"activation={self.activation!r} must be {_ACTIVATIONS}")
        if isinstance(self.preprocess, str) and self.preprocess not in PREPROCESSING:
            raise UserError(f"preprocess={self.preprocess!r} must be {_PREPROCESS}")
        sides = str(self.heads).split(",")
        if self.heads is not None and (
            len(sides) > 2 or not any(sides) or any(side and not _HEADS.fullmatch(side) for side in sides)
        ):
            raise UserError(f"heads={str(self.heads)[:80]} must be at least 1, or two such numbers, IMAGE,TEXT")

    def activations(self) -> tuple[str, str]:
        """The activations of the image and of the text tower, if given."""
        image, comma, text = (self.activation or "").partition(",")
        return image, text if comma else image

    def heads_of(self, tower: str) -> int | None:
        """The number of heads of the tower "image" or "text", if given."""
        image, _, text = ("" if self.heads is None else str(self.heads)).partition(",")
        side = image if tower == "image" else text
        return int(side) if side else None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds flags for the settings to a command line."""
    group = parser.add_argument_group("what public weights may not say themselves (an error asks for it)")
    group.add_argument(
        "--activation", help=f"of both towers, or the image and the text tower's: {', '.join(get_args(Activation))}"
    )
    group.add_argument("--preprocess", help=f"of images: {', '.join(PREPROCESSING)}")
    group.add_argument("--heads", help="of the attention of the image tower, or of both with a comma (16,20)")
    group.add_argument("--tokenizer", help="path of the vocabulary")
    group.add_argument("--image-size", type=int, help="pixels of its images; position embeddings are resized to it")


def from_flags(arguments: argparse.Namespace) -> Answers:
    """The settings of a parsed command line. Raises UserError for an invalid one."""
    names = (field.name for field in dataclasses.fields(Answers))
    return Answers(**{name: getattr(arguments, name) for name in names})


class Questions:
    """Collector of missing settings, so that one error asks for all of them."""

    def __init__(self, source: str, answers: Answers, *, binding: bool = True):
        """Starts without questions.

        Args:
          source: the path of the weights, for messages.
          answers: the settings given.
          binding: whether the answers are the user's for these weights, so that an unnecessary one is an error. If not,
            they are defaults, and known values take precedence.
        """
        self.source = source
        self.answers = answers
        self._binding = binding
        self._open: list[str] = []
        self._used: set[str] = set()
        self._headless: dict[str, int] = {}  # widths of towers

    def activations(self) -> tuple[str, str]:
        """The activations of the image and the text tower."""
        self._used.add("activation")
        if self.answers.activation is None:
            self._open.append(f"activation={_ACTIVATIONS}")
            return "gelu", "gelu"
        return self.answers.activations()

    def pixels(self) -> dict[str, Any]:
        """The keys of `config.PixelsConfig`."""
        self._used.add("preprocess")
        if self.answers.preprocess is None:
            self._open.append(f"preprocess={_PREPROCESS}")
            return {}
        if isinstance(self.answers.preprocess, str):
            return dict(PREPROCESSING[self.answers.preprocess][0])
        return to_dict(self.answers.preprocess)

    def heads(self, tower: str, width: int, published: int | None) -> int:
        """The number of heads of the tower "image" or "text"; `published` is that of published models of this width."""
        self._used.add(f"heads of the {tower} tower")
        answer = self.answers.heads_of(tower)
        heads = (answer or published) if self._binding else (published or answer)
        if heads is None:
            self._headless[tower] = width
            image = "IMAGE" if "image" in self._headless else self.answers.heads_of("image") or ""
            text = ",TEXT" if "text" in self._headless else ""
            whose = " and of ".join(f"the {name} tower of width {width}" for name, width in self._headless.items())
            question = f"heads={image}{text}, the numbers of {whose} (heads are often 64 wide)"
            self._open = [*(other for other in self._open if not other.startswith("heads=")), question]
            return 1
        return heads

    def image_size(self, patch_size: int, grid: int) -> int:
        """The image size in pixels of a tower with `grid` patches along a side."""
        least = patch_size * grid
        # SigLIP's so400m/14 was published for 378 and 384 pixels; the last 6 of 384 are not part of any patch.
        if (patch_size, grid) != (14, 27):
            return least
        answer = self.answers.image_size
        if answer is None:
            self._open.append("image_size=378 or 384 (of SigLIP's so400m/14, the number in its name)")
        return answer if answer is not None and answer // patch_size == grid else least

    def ask(self, question: str) -> None:
        """Adds a question as free text."""
        self._open.append(question)

    def check(self, described: Mapping[str, Any]) -> None:
        """Checks that every question has an answer, and that every answer was needed.

        Args:
          described: the model's keys for `methods.from_config`; unanswered ones have placeholders from the methods
            above.

        Raises:
          UserError: a question has no answer, or an answer concerns a setting that is in the files.
        """
        if self._open:
            raise UserError(
                f"{self.source} does not say all that its weights need; give {'; '.join(self._open)} "
                "(to jaxclip.load; on a command line as --activation=..., and the others likewise)"
            )
        if not self._binding:
            return
        image, text = described["image"], described["text"]
        activations = dict.fromkeys(tower["activation"] for tower in (image, text) if "activation" in tower)
        given: dict[str, tuple[bool, Any]] = {
            "activation": (self.answers.activation is not None, ",".join(activations)),
            "preprocess": (self.answers.preprocess is not None, described["pixels"]),
            **{
                f"heads of the {name} tower": (self.answers.heads_of(name) is not None, tower.get("heads"))
                for name, tower in (("image", image), ("text", text))
            },
        }
        for what, (is_given, said) in given.items():
            if is_given and what not in self._used:
                shown = f" ({said})" if said else ""
                raise UserError(f"{self.source} says its {what} itself{shown}: leave {what} out")


_ACTIVATIONS = (
    "'quick_gelu' (OpenAI's, MetaCLIP's and DFN's weights, names ending in -quickgelu), 'gelu' (LAION's, DataComp's) "
    "or 'gelu_tanh' (Google's), or two of them with a comma, the image tower's first"
)
_PREPROCESS = " or ".join(f"'{name}' ({whose})" for name, (_, whose) in PREPROCESSING.items())
_HEADS = re.compile("[1-9][0-9]{0,5}")
