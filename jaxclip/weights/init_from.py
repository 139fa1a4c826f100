"""Initialization of a run from existing weights (`config.init_from`)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxclip import checkpoint, methods, sharding
from jaxclip.config import Config
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.parsing import parse, to_dict
from jaxclip.paths import local
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights import image_part, public, tensor_map
from jaxclip.weights.families import bert, timm, torchvision
from jaxclip.weights.formats.safetensors import Stored, open_tensors
from jaxclip.weights.load import check_finite, open_weights
from jaxclip.weights.overrides import Answers
from jaxclip.weights.positions import cuts_text, resized
from jaxclip.weights.tensor_map import Piece

# Keys in which a tower may differ from its initial weights: sizes to which positions are resized, sizes that the shapes
# determine, and settings of the computation.
_FREE = {"image_size", "context_length", "vocab_size", "scan", "remat", "patch_drop", "drop", "stddev", "norm_groups"}
_SHOWN = 6  # faults named in an error
_SAMPLE = ("a photo of a dog", "Two red circles, left of 3 blue stars!", "ein Strassenschild", "don't", "")


@dataclasses.dataclass(frozen=True)
class _Start:
    """Weights from which a run may be initialized.

    Attributes:
      keys: the method's keys, as far as they are known.
      arrays: the arrays by path.
      tokenizer: the tokenizer; None if it is not known.
      new: a regular expression for the paths of arrays that the run's tower has in addition; empty for none.
    """

    keys: Mapping[str, Any]
    arrays: Mapping[str, jax.Array]
    tokenizer: Tokenizer | None
    new: str = ""


def start_from(config: Config, method: Any, mesh: Mesh, tokenizer: Tokenizer | None, state: Any) -> tuple[Any, int]:
    """Replaces the parameters of a fresh state, or those that match `config.init_only`, by trained ones.

    The source is anything `jaxclip.load` opens, or a single tower: torchvision's or timm's ResNet, or timm's vision
    transformer with a class token (DeiT), in a .safetensors, a Hugging Face folder of a BertModel, or a folder of
    `image_part.save`. Several of these, joined by " + ", give a tower each and nothing else. The cross-attention of a
    tower that starts from a BERT stays as it is.

    Args:
      config: the run's config.
      method: the run's method.
      mesh: the run's devices.
      tokenizer: the run's tokenizer.
      state: a fresh training state.

    Returns:
      The state, and the number of replaced values.

    Raises:
      UserError: the source cannot be opened, lacks required arrays, or has other activations, preprocessing or another
        vocabulary than the run.
    """
    own = tensor_map.flat(state.params) | tensor_map.flat(state.stats)
    wanted = {path: leaf for path, leaf in own.items() if re.search(config.init_only, path)}
    if not wanted:
        raise UserError(
            f"config.init_only={config.init_only!r} is found in no parameter's path, such as image/positions"
        )
    sources = re.split(r"\s+\+\s+", config.init_from.strip())
    taken: dict[str, jax.Array] = {}
    for source in sources:
        start = _one_tower(source, method, mesh, config.data.clean or None)
        part = wanted
        if len(sources) > 1:
            if start is None:
                raise UserError(f"config.init_from: {source} is no single tower, and only those are joined by ' + '")
            tower = "image" if "image" in start.keys else "text"
            part = {path: leaf for path, leaf in wanted.items() if _is_of(_given(path, start, method), tower, start)}
        if start is not None and start.new:
            part = {path: leaf for path, leaf in part.items() if not _is_new(_given(path, start, method), start)}
        if len(sources) > 1 and (not part or not taken.keys().isdisjoint(part)):
            raise UserError(f"config.init_from: {source} is the {tower} tower, which is not taken or given twice")
        taken |= _taken(source, start or _whole(config, method, mesh), method, tokenizer, part)
    params, stats = (
        tensor_map.nested({path: taken.get(path, leaf) for path, leaf in tensor_map.flat(part).items()})
        for part in (state.params, state.stats)
    )
    return dataclasses.replace(state, params=params, stats=stats), sum(leaf.size for leaf in taken.values())


def _taken(
    source: str, start: _Start, method: Any, tokenizer: Tokenizer | None, wanted: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The arrays of a source in place of the wanted ones, by path; raises UserError as `start_from`."""
    _check_same(source, start.keys, to_dict(method), wanted)
    shapes = {path: leaf.shape for path, leaf in wanted.items()}
    arrays = {
        # A copy of what starts a second array, too: the step donates each buffer, and cannot donate one twice.
        path: start.arrays[given] if given == path else jnp.copy(start.arrays[given])
        for path in wanted
        if (given := _given(path, start, method)) in start.arrays
    }
    found = resized(arrays, shapes, cut_text=cuts_text(method))
    faults = [f"{path} is not there" for path in wanted if path not in found]
    faults += [
        f"{path} is {found[path].shape}, not {leaf.shape}"
        for path, leaf in wanted.items()
        if path in found and found[path].shape != leaf.shape
    ]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(
            f"config.init_from={source}: {'; '.join(faults[:_SHOWN])}{more}. Make the recipe's towers those of the "
            "weights, or take a part of them by config.init_only, such as '^image'"
        )
    if (
        any(path.endswith("/token_embedding") for path in wanted)
        and start.tokenizer is not None
        and tokenizer is not None
    ):
        _check_vocabulary(source, start.tokenizer, tokenizer)
    return {path: jax.device_put(found[path].astype(leaf.dtype), leaf.sharding) for path, leaf in wanted.items()}


def _given(path: str, start: _Start, method: Any) -> str:
    """The path in the source of what an array of the run starts from."""
    return path if path in start.arrays else method.source_path(path)


def _is_of(path: str, tower: str, start: _Start) -> bool:
    """Whether a source of one tower should have this path."""
    return path.startswith(f"{tower}/") or path in start.arrays


def _is_new(path: str, start: _Start) -> bool:
    """Whether the run has this array in addition to the source's."""
    return path not in start.arrays and re.search(start.new, path) is not None


def _whole(config: Config, method: Any, mesh: Mesh) -> _Start:
    # The recipe supplies values that are not in the files. Values in the files are later compared with it.
    text_activation = method.text.activation
    answers = Answers(
        activation=f"{getattr(method.image, 'activation', text_activation)},{text_activation}",
        preprocess=method.pixels,
        heads=f"{getattr(method.image, 'heads', '')},{method.text.heads}",
        image_size=method.image.image_size,
    )
    weights = open_weights(config.init_from, answers, answers_binding=False, tokenizer_needed=False)
    params, stats = weights.read(mesh)
    check_finite(params, weights.source)
    check_finite(stats, weights.source)
    return _Start(to_dict(weights.method), tensor_map.flat(params) | tensor_map.flat(stats), weights.tokenizer)


def _one_tower(source: str, method: Any, mesh: Mesh, clean: str | None) -> _Start | None:
    """The weights of a single tower, whose vocabulary cleans texts as the run's; None if the source is something else.

    How texts are cleaned is the run's choice, and changes none of the ids that the tower has learned.
    """
    path = local(source, "config.init_from")
    further: list[Piece] = []
    own = checkpoint.find(path) if path.is_dir() else None
    if own is not None:
        saved = checkpoint.load_model(own)
        if image_part.KEY not in saved:
            return None
        part, found = image_part.read(own, saved, mesh)
        check_finite(found, source)
        return _Start(to_dict(part), found, None)
    if path.is_dir() and (path / "config.json").is_file():
        config = public.read_json(path / "config.json")
        if config.get("model_type") != "bert":
            return None
        family: Any = bert
        kind: Any = BertConfig
        tower, keys = "text", bert.describe(source, config)
        # How the blocks are divided is the run's choice, and not said by the files.
        text = getattr(method, "text", None)
        if isinstance(text, BertConfig) and text.lower < keys["layers"]:
            keys["lower"] = text.lower
        stored = open_tensors(public.weight_file(path, "model"))
        further = _word_head(stored, method)
        tensors = bert.names(stored, word_head=bool(further))
        tokenizer = tokenizers.load(path, clean=clean) if public.has_tokenizer(path) else None
    elif path.is_file() and torchvision.is_one(stored := open_tensors(path)):
        family, kind = torchvision, ResNetConfig
        tensors, tokenizer = torchvision.names(stored), None
        tower, keys = "image", torchvision.describe(source, tensors)
    elif path.is_file() and timm.is_one(stored):
        family, kind = timm, ViTConfig
        tensors, tokenizer = timm.names(stored), None
        heads = method.image.heads if isinstance(method.image, ViTConfig) else 1
        tower, keys = "image", timm.describe(source, tensors, heads)
    else:
        return None
    public.check_numbers(source, keys, len(tensors))
    theirs = parse(kind, keys, source)
    # Before a method is made with this tower, which not every method can have.
    own = getattr(getattr(method, tower, None), "name", None)
    if own != theirs.name:
        raise UserError(
            f"config.init_from={source} has {tower}.name={theirs.name!r} where the recipe has {own!r}; take weights of "
            "the recipe's kind of tower, or another kind of tower if config.method has it"
        )
    listed = family.pieces(theirs) + further
    # Together with the run's other tower, for paths and shapes.
    variables = methods.abstract_variables(dataclasses.replace(method, **{tower: theirs}))
    shapes = tensor_map.flat(methods.joined(*variables))
    named = {piece.path for piece in listed}
    tensor_map.check(source, tensors, listed, {path: shapes[path].shape for path in named})
    abstract = tensor_map.flat(methods.joined(*sharding.placed(mesh, *variables)))
    arrays = tensor_map.read(tensors, listed, {path: leaf for path, leaf in abstract.items() if path in named})
    # The vector of a BERT's text is the method's choice, and not said by its files.
    said = {key: value for key, value in to_dict(theirs).items() if (tower, key) != ("text", "pool")}
    return _Start({tower: said}, arrays, tokenizer, bert.ADDED if family is bert else "")


def _word_head(stored: Mapping[str, Stored], method: Any) -> list[Piece]:
    """The pieces of a BERT's head of masked language modeling if both the file and the method have one."""
    listed = bert.word_head_pieces()
    there = bert.names(stored, word_head=True)
    wanted = tensor_map.flat(methods.abstract_variables(method)[0])
    return listed if all(piece.name in there and piece.path in wanted for piece in listed) else []


def _check_same(source: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError if the recipe's config of a replaced tower differs from that of its weights."""
    # A decoder's config is that of the texts, too.
    towers = {"image": ("image/",), "text": ("text/", "embedding/", "decoder/", "backward_decoder/")}
    parts = [tower for tower, paths in towers.items() if any(path.startswith(paths) for path in wanted)]
    if "image" in parts:
        parts.append("pixels")
    # A projection with a bias computes a different result without it.
    faults: dict[str, tuple[Any, Any]] = {
        key: (theirs[key], ours[key])
        for tower in ("image", "text")
        if (key := f"{tower}_projection_bias") in theirs and f"{tower}_projection/kernel" in wanted
        if theirs[key] != ours[key]
    }
    for part in parts:
        if part not in theirs:
            continue
        # If the kind of tower differs, its other keys are not comparable.
        keys = theirs[part] if theirs[part].get("name") == ours[part].get("name") else ("name",)
        faults |= {
            f"{part}.{key}": (theirs[part][key], ours[part][key])
            for key in keys
            if key not in _FREE and theirs[part][key] != ours[part][key]
        }
    if faults:
        said = ", ".join(f"{key}={value!r} where the recipe has {mine!r}" for key, (value, mine) in faults.items())
        keys = ", ".join(f"config.method.{key}={value!r}" for key, (value, _) in faults.items())
        raise UserError(
            f"config.init_from={source} has {said}; set {keys}, or take a part of the weights by config.init_only"
        )


def _check_vocabulary(source: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    if theirs.vocab_size == ours.vocab_size and np.array_equal(theirs(_SAMPLE, 32)[0], ours(_SAMPLE, 32)[0]):
        return
    if theirs.pad_id != ours.pad_id and _without_padding(theirs) == _without_padding(ours):
        raise UserError(
            f"config.init_from={source} has texts padded with id {theirs.pad_id}, which its text tower sees, and the "
            f"run pads with {ours.pad_id}; leave the text tower out by config.init_only='^image'"
        )
    raise UserError(
        f"config.init_from={source} has another vocabulary than the run; set config.data.vocabulary to the file of the "
        "weights' (and config.data.train_vocabulary=0), or leave the text tower out by config.init_only='^image'"
    )


def _without_padding(tokenizer: Tokenizer) -> list[list[int]]:
    return [row[: end + 1].tolist() for row, end in zip(*tokenizer(_SAMPLE, 32), strict=True)]
