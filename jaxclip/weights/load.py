"""Weights opened, ours or another project's."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Protocol

from jax.sharding import Mesh

from jaxclip import checkpoint, methods, sharding
from jaxclip.config import Config, parse
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.weights.overrides import Answers
from jaxclip.weights.public import open_foreign


class Weights(Protocol):
    """A model in files, of which the parameters have not been read yet.

    Attributes:
      source: its path.
      method: the method it is of.
      tokenizer: its tokenizer; None only where it was not needed and nothing says it.
      config: of the run that trained it, where it is one of ours.
    """

    @property
    def source(self) -> str: ...

    @property
    def method(self) -> Any: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def config(self) -> Config | None: ...

    def read(self, mesh: Mesh, dtype: Any = "float32") -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters, of that dtype, and batch statistics on the devices of a mesh."""
        ...


@dataclasses.dataclass(frozen=True)
class OwnWeights:
    """Those of a checkpoint of ours; a `Weights`."""

    source: str
    method: Any
    tokenizer: Tokenizer | None
    config: Config | None

    def read(self, mesh: Mesh, dtype: Any = "float32") -> tuple[dict[str, Any], dict[str, Any]]:
        """As `Weights` has it."""
        abstract = sharding.placed(mesh, *methods.abstract_variables(self.method), dtype)
        # What was evaluated is what is used and exported.
        averaged = self.config is not None and self.config.optimizer.average_decay > 0
        return checkpoint.load_variables(pathlib.Path(self.source), *abstract, averaged=averaged)


def open_weights(
    path: str | os.PathLike[str],
    answers: Answers | None = None,
    *,
    answers_binding: bool = True,
    tokenizer_needed: bool = True,
) -> Weights:
    """Opens a run's workdir (its newest checkpoint), one checkpoint's folder, or public weights.

    Args:
      path: one of these, or what `foreign.open_foreign` takes.
      answers: what public weights may not say.
      answers_binding: whether an answer to what the files say themselves is an error.
      tokenizer_needed: whether the vocabulary has to be known.

    Raises:
      UserError: it is none of these, something in it is wrong, or something must be asked for.
    """
    answers = answers or Answers()
    folder = checkpoint.find(pathlib.Path(os.fspath(path)).expanduser())
    if folder is None:
        return open_foreign(path, answers, answers_binding=answers_binding, tokenizer_needed=tokenizer_needed)
    given = [name for name, value in dataclasses.asdict(answers).items() if value is not None and name != "image_size"]
    if given and answers_binding:
        raise UserError(f"{path} is one of our checkpoints, which say all themselves: leave {', '.join(given)} out")
    saved = checkpoint.load_model(folder)
    config = parse(Config, saved["config"]) if "config" in saved else None
    method = methods.from_config(config.method if config else saved["method"])
    tokenizer = tokenizers.from_json(saved["tokenizer"]) if "tokenizer" in saved else None
    return OwnWeights(str(folder), method, tokenizer, config)
