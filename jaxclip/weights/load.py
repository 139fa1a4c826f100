"""Opening of weights, from jaxclip's checkpoints or from other projects."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxclip import checkpoint, methods, sharding
from jaxclip.config import Config
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.parsing import parse
from jaxclip.paths import local
from jaxclip.weights import image_part
from jaxclip.weights.overrides import Answers
from jaxclip.weights.public import open_foreign


class Weights(Protocol):
    """A model in files, whose parameters have not been read yet.

    Attributes:
      source: the path of the model.
      method: the model's method.
      tokenizer: the model's tokenizer; None only if it is not needed and not in the files.
      config: the config of the run that trained the model, if jaxclip trained it.
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
        """Parameters of the given dtype, and batch statistics, on the devices of a mesh."""
        ...


@dataclasses.dataclass(frozen=True)
class OwnWeights:
    """The weights in a checkpoint of jaxclip; a `Weights`."""

    source: str
    method: Any
    tokenizer: Tokenizer | None
    config: Config | None

    def read(self, mesh: Mesh, dtype: Any = "float32") -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Weights.read`."""
        abstract = sharding.placed(mesh, *methods.abstract_variables(self.method), dtype)
        # The parameters that were evaluated are also used and exported.
        averaged = self.config is not None and self.config.optimizer.average_decay > 0
        return checkpoint.load_variables(pathlib.Path(self.source), *abstract, averaged=averaged)


def check_finite(arrays: Any, source: str) -> None:
    """Raises UserError naming an array of weights that has infinities or NaN: no figure of such a model means anything.

    Args:
      arrays: a pytree of arrays.
      source: where they are from.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if not np.all(np.isfinite(np.asarray(leaf))) if _is_here(leaf) else not bool(jnp.all(jnp.isfinite(leaf))):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{source}: {name} has numbers that are not finite; the weights are damaged, or diverged")


def _is_here(leaf: jax.Array) -> bool:
    """Whether NumPy can look at an array without a copy and without a compiled program."""
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def open_weights(
    path: str | os.PathLike[str],
    answers: Answers | None = None,
    *,
    step: int | None = None,
    answers_binding: bool = True,
    tokenizer_needed: bool = True,
) -> Weights:
    """Opens a run's workdir, one checkpoint's folder, or public weights.

    Args:
      path: one of these, or a path for `public.open_foreign`.
      answers: settings that public weights may omit.
      step: which checkpoint of a run; None for the newest.
      answers_binding: whether an answer is an error if the files contain the setting.
      tokenizer_needed: whether a missing vocabulary is an error.

    Raises:
      UserError: the path is none of these, its content is invalid, or a setting is missing.
    """
    answers = answers or Answers()
    folder = checkpoint.find(local(path, "path"), step)
    if folder is None:
        return open_foreign(path, answers, answers_binding=answers_binding, tokenizer_needed=tokenizer_needed)
    given = [name for name, value in dataclasses.asdict(answers).items() if value is not None and name != "image_size"]
    if given and answers_binding:
        raise UserError(f"{path} is one of our checkpoints, which say all themselves: leave {', '.join(given)} out")
    saved = checkpoint.load_model(folder)
    if image_part.KEY in saved:
        raise UserError(
            f"{path} is an image tower alone: config.init_from={path} with config.init_only='^image/' trains from it"
        )
    config = parse(Config, saved["config"]) if "config" in saved else None
    method = methods.from_config(config.method if config else saved["method"])
    tokenizer = tokenizers.from_json(saved["tokenizer"]) if "tokenizer" in saved else None
    return OwnWeights(str(folder), method, tokenizer, config)
