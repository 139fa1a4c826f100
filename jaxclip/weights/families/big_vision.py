"""SigLIP in google-research/big_vision's format: an .npz of flax.linen parameters, whose shapes give most sizes.

Names and computation follow big_vision's models/vit.py, models/proj/image_text/two_towers.py and text_transformer.py.
Two values are fixed by the code rather than the file: flax.linen's gelu is the tanh approximation, and the eps of its
LayerNorm is 1e-6. `t` is the logarithm of the scale, as in jaxclip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.errors import UserError
from jaxclip.methods.clip import Method
from jaxclip.towers.layers import Activation
from jaxclip.weights.formats.safetensors import Stored
from jaxclip.weights.overrides import Questions
from jaxclip.weights.tensor_map import FLAX_PATCHES, ONE_ROW, TWO_ROWS, Layout, Piece

_ACTIVATION: Activation = "gelu_tanh"
_EPS = 1e-6
_IMAGE, _TEXT = "img/Transformer", "txt/Encoder_0"
_ATTENTION = "MultiHeadDotProductAttention_0"


def names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The parameters without the optimizer's state and the prefix "params/", which files of a training state have."""
    return {name.removeprefix("params/"): tensors[name] for name in tensors if not name.startswith("opt/")}


def describe(source: str, tensors: Mapping[str, Stored], questions: Questions) -> dict[str, Any]:
    """The config of the model in an .npz, for `methods.from_config`.

    Args:
      source: the file, for messages.
      tensors: the result of `names`.
      questions: asked for the preprocessing, and for the image size if the patches do not determine it.

    Raises:
      UserError: the model is not a SigLIP.
    """
    shapes = _Shapes(source, tensors)
    patch, other, channels, width = shapes.of("img/embedding/kernel", 4)
    _, patches, _ = shapes.of("img/pos_embedding", 3)
    grid = math.isqrt(patches)
    if patch != other or channels != 3 or grid**2 != patches:
        raise UserError(
            f"{source}: {patches} patches of {patch} x {other} pixels in {channels} colors are no square image"
        )
    vocab_size, text_width = shapes.of("txt/Embed_0/embedding", 2)
    _, context_length, _ = shapes.of("txt/pos_embedding", 3)
    shapes.of("img/MAPHead_0/probe", 3)
    return {
        "name": "siglip",
        "image": {
            "name": "vit",
            "image_size": questions.image_size(patch, grid),
            "patch_size": patch,
            **shapes.blocks(_IMAGE, width),
            "pool": "map",
            "ln_pre": False,
            "patch_bias": True,
        },
        "text": {
            "name": "text",
            "vocab_size": vocab_size,
            "context_length": context_length,
            **shapes.blocks(_TEXT, text_width),
            "causal": False,
            "pool": "last",
        },
        "embed_dim": width,
        "image_projection": False,
        "text_projection_bias": True,
        "pixels": questions.pixels(),
    }


class _Shapes:
    """The shapes in a file, with checks of their existence and number of axes."""

    def __init__(self, source: str, tensors: Mapping[str, Stored]):
        self._source = source
        self._tensors = tensors

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        if name not in self._tensors:
            raise UserError(f"{self._source}: it has no {name}, as big_vision's two towers of SigLIP have")
        shape = self._tensors[name].shape
        if len(shape) != axes or 0 in shape:
            raise UserError(
                f"{self._source}: {name} has the shape {shape}; it must have {axes} axes, none of them empty"
            )
        return shape

    def blocks(self, theirs: str, width: int) -> dict[str, Any]:
        """The keys of a tower's blocks in jaxclip's config."""
        scanned = _is_scanned(theirs, self._tensors)
        block = f"{theirs}/encoderblock" if scanned else f"{theirs}/encoderblock_0"
        queries = self.of(f"{block}/{_ATTENTION}/query/kernel", 3 + scanned)
        hidden = self.of(f"{block}/MlpBlock_0/Dense_0/kernel", 2 + scanned)[-1]
        numbered = re.compile(rf"{re.escape(theirs)}/encoderblock_\d+/LayerNorm_0/scale")
        return {
            "width": width,
            "layers": queries[0] if scanned else sum(bool(numbered.fullmatch(name)) for name in self._tensors),
            "heads": queries[-2],
            "mlp_width": 0 if hidden == 4 * width else hidden,  # as in recipes
            "activation": _ACTIVATION,
            "eps": _EPS,
        }


def pieces(method: Method, tensors: Mapping[str, Stored]) -> list[Piece]:
    """The pieces of a model. A tower's blocks are separate tensors, or stacked ones if it was trained with a scan."""
    image, text = method.image, method.text
    assert image.name == "vit" and text.name == "text"
    head, pool = "img/MAPHead_0", "image/map_head"
    return [
        Piece("img/embedding/kernel", "image/patch_kernel", (), FLAX_PATCHES),
        Piece("img/embedding/bias", "image/patch_bias"),
        Piece("img/pos_embedding", "image/positions", (), ONE_ROW),
        *_blocks(_IMAGE, "image", image.width, image.heads, image.layers, tensors),
        *_norm(f"{_IMAGE}/encoder_norm", "image/ln_post"),
        Piece(f"{head}/probe", f"{pool}/probe", (), TWO_ROWS),
        *_attention(f"{head}/{_ATTENTION}", pool, image.width, image.heads, (), ()),
        *_norm(f"{head}/LayerNorm_0", f"{pool}/ln"),
        *_mlp(f"{head}/MlpBlock_0", pool),
        Piece("txt/Embed_0/embedding", "text/token_embedding"),
        Piece("txt/pos_embedding", "text/positions", (), ONE_ROW),
        *_blocks(_TEXT, "text", text.width, text.heads, text.layers, tensors),
        *_norm(f"{_TEXT}/encoder_norm", "text/ln_final"),
        Piece("txt/head/kernel", "text_projection/kernel"),
        Piece("txt/head/bias", "text_projection/bias"),
        Piece("t", "logit_scale", (), ONE_ROW),
        Piece("b", "logit_bias", (), ONE_ROW),
    ]


def _is_scanned(theirs: str, tensors: Mapping[str, Stored]) -> bool:
    return any(name.startswith(f"{theirs}/encoderblock/") for name in tensors)


Where = tuple[int | slice, ...]


def _blocks(
    theirs: str, tower: str, width: int, heads: int, layers: int, tensors: Mapping[str, Stored]
) -> Iterator[Piece]:
    ours = f"{tower}/transformer/blocks"
    # (their block, its index in our stacked blocks, and the same index in a form that column indices can follow)
    found: list[tuple[str, Where, Where]] = [
        (f"{theirs}/encoderblock_{number}", (number,), (number,)) for number in range(layers)
    ]
    if _is_scanned(theirs, tensors):
        found = [(f"{theirs}/encoderblock", (), (slice(None),))]
    for block, where, first in found:
        yield from _norm(f"{block}/LayerNorm_0", f"{ours}/ln_1", where)
        yield from _attention(f"{block}/{_ATTENTION}", ours, width, heads, where, first)
        yield from _norm(f"{block}/LayerNorm_1", f"{ours}/ln_2", where)
        yield from _mlp(f"{block}/MlpBlock_0", ours, where)


def _attention(theirs: str, ours: str, width: int, heads: int, where: Where, first: Where) -> Iterator[Piece]:
    """The pieces of a MultiHeadDotProductAttention, which has a separate axis for heads."""
    # Queries, keys, values: [..., heads, head width] there, concatenated here.
    beside = Layout(lambda x: x.reshape(*x.shape[:-2], -1), lambda x: x.reshape(*x.shape[:-1], heads, -1))
    # Output: [..., heads, head width, width] there.
    below = Layout(
        lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1]), lambda x: x.reshape(*x.shape[:-2], heads, -1, x.shape[-1])
    )
    for third, name in enumerate(("query", "key", "value")):
        columns = slice(third * width, (third + 1) * width)
        yield Piece(f"{theirs}/{name}/kernel", f"{ours}/qkv_kernel", (*first, slice(None), columns), beside)
        yield Piece(f"{theirs}/{name}/bias", f"{ours}/qkv_bias", (*first, columns), beside)
    yield Piece(f"{theirs}/out/kernel", f"{ours}/attention_out_kernel", where, below)
    yield Piece(f"{theirs}/out/bias", f"{ours}/attention_out_bias", where)


def _mlp(theirs: str, ours: str, where: Where = ()) -> Iterator[Piece]:
    for layer, name in (("Dense_0", "mlp_in"), ("Dense_1", "mlp_out")):
        yield Piece(f"{theirs}/{layer}/kernel", f"{ours}/{name}_kernel", where)
        yield Piece(f"{theirs}/{layer}/bias", f"{ours}/{name}_bias", where)


def _norm(theirs: str, ours: str, where: Where = ()) -> list[Piece]:
    return [Piece(f"{theirs}/scale", f"{ours}/scale", where), Piece(f"{theirs}/bias", f"{ours}/bias", where)]
