"""Methods: one module per paper. `config.method.name` is the module's name.

A module defines `Method`, a frozen dataclass whose fields are the method's keys in a config and which has the
functions of `jaxclip.methods.Method`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxclip.config import PixelsConfig, parse, to_dict
from jaxclip.errors import UserError


@runtime_checkable
class Method(Protocol):
    """What the step needs of a method. Parameters are nested dicts of arrays."""

    @property
    def image_size(self) -> int:
        """Pixels of the square pictures it takes."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens of the texts it takes."""
        ...

    @property
    def pixels(self) -> PixelsConfig:
        """How pictures are prepared for it."""
        ...

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, freshly initialised."""
        ...

    def embed(
        self,
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        *,
        keys: jax.Array | None,
        dtype: Any,
        constrain: Callable[[jax.Array], jax.Array],
    ) -> dict[str, jax.Array]:
        """What the loss needs of each record, [batch, ...] arrays: all the work that records do not share.

        It may be called on parts of the batch (gradient caching), so a record's values must not depend on the others;
        where the model has batch statistics they may, and it is called on whole batches only, updating the statistics
        in place. `keys` [batch] is the randomness of each record, None in validation.
        """
        ...

    def loss(
        self, model: nnx.Module, embedded: Mapping[str, jax.Array], *, mesh: Mesh | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and further metrics of the global batch from what `embed` gave for it."""
        ...

    def clamp(self, params: Any) -> Any:
        """The parameters put back where the paper keeps them, after each update."""
        ...

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch."""
        ...


def from_config(config: Mapping[str, Any]) -> Any:
    """The method that `config["name"]` names, built from the other keys.

    Raises:
      UserError: there is no such method, or a key is wrong.
    """
    keys = dict(config.items())
    name = keys.pop("name", None)
    if not isinstance(name, str) or not name.isidentifier() or not importlib.util.find_spec(f"{__name__}.{name}"):
        raise UserError(f"config.method.name={name!r} is not a method; there must be a file jaxclip/methods/{name}.py")
    return parse(importlib.import_module(f"{__name__}.{name}").Method, keys, "config.method")


def to_config(method: Method) -> dict[str, Any]:
    """The config that `from_config` makes this method of, as plain JSON values."""
    return {"name": type(method).__module__.rpartition(".")[2]} | to_dict(method)


def init_variables(method: Method, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fresh model's parameters and its batch statistics, as nested dicts of arrays; most have none of the latter."""
    _, params, stats = nnx.split(method.init(nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def abstract_variables(method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes and dtypes of what `init_variables` gives."""
    return jax.eval_shape(lambda: init_variables(method, jax.random.key(0)))


def joined(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and batch statistics in one nested dict, which is all of a model's variables."""
    both = dict(params)
    for key, value in stats.items():
        both[key] = joined(both[key], value) if key in both else value
    return both


def batch_stats(model: nnx.Module) -> dict[str, Any]:
    """The batch statistics of a model, as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def bind(method: Method) -> Callable[[Any], nnx.Module]:
    """A function from variables (parameters joined with batch statistics) to the method's model over them."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: method.init(nnx.Rngs(params=0))))
    return lambda variables: nnx.merge(graph, nnx.State(variables))
