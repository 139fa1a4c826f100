"""Methods: one module per paper. `config.method.name` is the module's name.

A module defines `Method`, a frozen dataclass derived from `jaxclip.methods.Method`, whose fields are the method's keys
in a config.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Inputs
from jaxclip.parsing import parse, to_dict
from jaxclip.towers.rngs import Rngs


class Method:
    """The base of all methods: what the trainer, the plan and the evaluations ask of one.

    A method's model is an nnx module. Its methods say what the trained model can do, and evaluations ask for them by
    name:

      encode_image(images, ctx) -> [batch, width] unit embeddings; `images` uint8 [batch, size, size, 3]
      encode_text(tokens, end, ctx) -> [batch, width] unit embeddings; int32 [batch, context] and [batch]
      scale_and_bias() -> two scalars: logits are scale * cosine + bias
      features(images, ctx) -> [batch, width], the image tower's pooled output before any projection

      caption(images, ctx, *, start, end, words, beams, per_beam, nucleus, seed) -> int32 [batch, length], token ids
        filled up with `end`; see `methods.virtex.Captioner.caption`
      attention(images, tokens, ctx) -> [batch, length - 1, places], where each word of a caption looked

    and likewise `match` if a method has it. A method may add others for evaluations of its own.

    Attributes:
      task: the evaluation on `data.eval` if a recipe names none; a module of `jaxclip.evaluate`.
      charts: further metrics on the report's page: a title, and the names of the curves under it.
    """

    task: ClassVar[str] = "zeroshot_retrieval"
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def inputs(self) -> Inputs:
        """What a batch holds, by name; see `jaxclip.inputs`."""
        raise NotImplementedError

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the method cannot be trained with this `data.tokenizers.Tokenizer`."""

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, freshly initialized."""
        raise NotImplementedError

    def memory(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """State that is neither parameter nor batch statistic: momentum copies, queues, banks. Most methods have none.

        Its variables are sharded by the rules of `jaxclip.sharding`, checkpointed with the training state and never
        exported. `loss` finds it at `ctx.memory`.
        """
        return nnx.Module()

    def loss(self, model: Any, batch: Mapping[str, jax.Array], ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of the global batch, and further metrics, all float32 scalars.

        What concerns each record alone goes through `ctx.each`, the seam of gradient caching.
        """
        raise NotImplementedError

    def source_path(self, path: str) -> str:
        """The path of the array from which the one at `path` starts, if the weights of `config.init_from` lack it."""
        return path

    def clamp(self, params: Any) -> Any:
        """The parameters moved back into the paper's bounds, after each update."""
        return params


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


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raises UserError if a tokenizer has more tokens than `config.method.text.vocab_size`."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.vocab_size} tokens and method.text.vocab_size is only {vocab_size}; "
            f"set config.method.text.vocab_size={tokenizer.vocab_size}"
        )


def init_variables(method: Method, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fresh model's parameters and its batch statistics, as nested dicts of arrays; most have none of the latter."""
    _, params, stats = nnx.split(method.init(Rngs(key)), nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def init_memory(method: Method, model: nnx.Module, key: jax.Array) -> dict[str, Any]:
    """The variables of a fresh memory, as nested dicts of arrays."""
    return contents(method.memory(model, Rngs(key)))


def abstract_variables(method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes and dtypes of what `init_variables` gives."""
    return jax.eval_shape(lambda: init_variables(method, jax.random.key(0)))


def joined(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and batch statistics in one nested dict, which is all of a model's variables."""
    both = dict(params)
    for key, value in stats.items():
        both[key] = joined(both[key], value) if key in both else value
    return both


def contents(module: nnx.Module) -> dict[str, Any]:
    """All variables of a module, as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(module))


def batch_stats(model: nnx.Module) -> dict[str, Any]:
    """The batch statistics of a model, as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def bind(method: Method) -> Callable[[Any], nnx.Module]:
    """A function from variables (parameters joined with batch statistics) to the method's model over them."""
    graph = _model_graph(method)
    return lambda variables: nnx.merge(graph, nnx.State(variables))


def bind_memory(method: Method) -> Callable[[Any], nnx.Module]:
    """A function from the variables of a memory to the method's memory over them."""
    graph = _memory_graph(method)
    return lambda variables: nnx.merge(graph, nnx.State(variables))


# Kept, since a run binds one method for its step, its evaluations and its report, and tracing an initialization takes
# a large part of a second.
@functools.lru_cache(maxsize=32)
def _model_graph(method: Method) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: method.init(Rngs(0))))[0]


@functools.lru_cache(maxsize=32)
def _memory_graph(method: Method) -> nnx.GraphDef:
    if type(method).memory is Method.memory:  # None, whatever the model is, which takes time to trace.
        return nnx.split(nnx.Module())[0]

    def fresh() -> nnx.Module:
        return method.memory(method.init(Rngs(0)), Rngs(0))

    return nnx.split(nnx.eval_shape(fresh))[0]
