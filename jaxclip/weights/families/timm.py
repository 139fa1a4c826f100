"""Vision transformers in timm (timm/models/vision_transformer.py), from which open_clip builds its SigLIP models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxclip.errors import UserError
from jaxclip.towers.layers import Activation
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights.families.torchvision import count
from jaxclip.weights.formats.safetensors import Stored
from jaxclip.weights.tensor_map import LINEAR, ONE_ROW, PATCHES, TWO_ROWS, Piece, layer_norm, linear

EPS = 1e-6  # of timm's own layer normalization


@dataclasses.dataclass(frozen=True)
class Trunk:
    """The tower behind a name in timm; the attributes are those of `ViTConfig`."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation


def _named(name: str, sizes: dict[int, Activation], *shape: int) -> dict[str, Trunk]:
    patch, width, layers, heads, mlp_width = shape
    return {
        f"vit_{name}_patch{patch}_siglip_{size}": Trunk(size, patch, width, layers, heads, mlp_width, activation)
        for size, activation in sizes.items()
    }


# The towers with attention pooling, with timm's activation for each. It does not depend on the version of SigLIP, and
# may differ from that of the weights, all of which were trained with the tanh approximation.
TRUNKS: dict[str, Trunk] = {
    **_named("base", {256: "gelu_tanh"}, 32, 768, 12, 12, 0),
    **_named("base", {224: "gelu", 256: "gelu", 384: "gelu", 512: "gelu"}, 16, 768, 12, 12, 0),
    **_named("large", {256: "gelu", 384: "gelu", 512: "gelu_tanh"}, 16, 1024, 24, 16, 0),
    **_named("so400m", {224: "gelu", 378: "gelu", 384: "gelu"}, 14, 1152, 27, 16, 4304),
    **_named("so400m", {256: "gelu_tanh", 384: "gelu_tanh", 512: "gelu_tanh"}, 16, 1152, 27, 16, 4304),
    **_named("giantopt", {256: "gelu_tanh", 384: "gelu_tanh"}, 16, 1536, 40, 16, 0),
}


def is_one(tensors: Mapping[str, Stored]) -> bool:
    """Whether tensors have the names of a vision transformer of timm's, without a prefix."""
    return "patch_embed.proj.weight" in tensors and "blocks.0.attn.qkv.weight" in tensors


def describe(source: str, tensors: Mapping[str, Stored], heads: int) -> dict[str, Any]:
    """The config of a tower with a class token, such as DeiT's, from the tensors' names and shapes.

    Args:
      source: the name of the file, for messages.
      tensors: tensors for which `is_one` is true.
      heads: of the attention, which the file does not say.

    Raises:
      UserError: the tower is not read at its class token, or has further tokens, as DeiT's distilled models have.
    """
    named = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.bias")
    patch, positions, hidden = (tensors[name].shape if name in tensors else () for name in named)
    rows = positions[1] if len(positions) == 3 else 0
    grid = math.isqrt(max(0, rows - 1))
    if "cls_token" not in tensors or "attn_pool.latent" in tensors or "norm.weight" not in tensors:
        raise UserError(f"{source} is a vision transformer that is not read at a class token; take one such as DeiT's")
    if len(patch) != 4 or patch[1:] != (3, patch[2], patch[2]) or grid**2 + 1 != rows:
        raise UserError(
            f"{source}: pos_embed is {positions or 'missing'} and patch_embed.proj.weight {patch}: not a class token "
            "and a square of patches; of DeiT take a model that is not distilled"
        )
    return {
        "name": "vit",
        "image_size": grid * patch[2],
        "patch_size": patch[2],
        "width": patch[0],
        "layers": count(tensors, "blocks."),
        "heads": heads,
        "mlp_width": 0 if hidden in ((), (4 * patch[0],)) else hidden[0],  # as in recipes
        "activation": "gelu",
        "eps": EPS,
        "pool": "class",
        "ln_pre": "norm_pre.weight" in tensors,
        "patch_bias": "patch_embed.proj.bias" in tensors,
    }


def names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors without the classifier, which jaxclip's towers do not have."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("head.", "pre_logits."))}


def keys(trunk: Trunk) -> dict[str, Any]:
    """The keys of the image tower in jaxclip's config."""
    return {
        "name": "vit",
        **dataclasses.asdict(trunk),
        "eps": EPS,
        "pool": "map",
        "ln_pre": False,
        "patch_bias": True,
    }


def trunk_name(config: ViTConfig) -> str | None:
    """The name in timm of a tower; None if timm has no such tower."""
    hidden = 0 if config.mlp_width == 4 * config.width else config.mlp_width
    own = dataclasses.asdict(config) | {"mlp_width": hidden}
    return next((name for name, trunk in TRUNKS.items() if keys(trunk).items() <= own.items()), None)


def heads(width: int) -> int | None:
    """The number of heads of the trunks of a width; None if there is no such trunk."""
    return next((trunk.heads for trunk in TRUNKS.values() if trunk.width == width), None)


def pieces(config: ViTConfig) -> list[Piece]:
    """The pieces of a tower that is a file of its own; raises UserError as `trunk_pieces`."""
    return trunk_pieces(config, "")


def trunk_pieces(config: ViTConfig, prefix: str) -> list[Piece]:
    """The pieces of a tower.

    Args:
      config: the tower's config.
      prefix: the prefix of the tensors' names.

    Raises:
      UserError: timm has no such tower: the patch embedding has a bias exactly if there is no `ln_pre`, and with
        attention pooling there is none.
    """
    if config.ln_pre == config.patch_bias or config.ln_pre and config.pool == "map":
        own = ", ".join(f"{key}={getattr(config, key)!r}" for key in ("pool", "ln_pre", "patch_bias"))
        raise UserError(f"timm has no vision transformer of {own}; keep it in jaxclip's own form")
    blocks = "image/transformer/blocks"
    pieces = [
        Piece(f"{prefix}patch_embed.proj.weight", "image/patch_kernel", layout=PATCHES),
        Piece(f"{prefix}pos_embed", "image/positions", layout=ONE_ROW),
        *layer_norm(f"{prefix}norm", "image/ln_post"),
    ]
    if config.patch_bias:
        pieces.append(Piece(f"{prefix}patch_embed.proj.bias", "image/patch_bias"))
    if config.ln_pre:
        pieces += layer_norm(f"{prefix}norm_pre", "image/ln_pre")
    if config.pool == "class":
        pieces.append(Piece(f"{prefix}cls_token", "image/class_embedding", layout=TWO_ROWS))
    else:
        pieces += _map_head(config, f"{prefix}attn_pool")
    for layer in range(config.layers):
        block, where = f"{prefix}blocks.{layer}", (layer,)
        pieces += [
            *layer_norm(f"{block}.norm1", f"{blocks}/ln_1", where),
            *linear(f"{block}.attn.qkv", f"{blocks}/qkv", where),
            *linear(f"{block}.attn.proj", f"{blocks}/attention_out", where),
            *layer_norm(f"{block}.norm2", f"{blocks}/ln_2", where),
            *linear(f"{block}.mlp.fc1", f"{blocks}/mlp_in", where),
            *linear(f"{block}.mlp.fc2", f"{blocks}/mlp_out", where),
        ]
    return pieces


def _map_head(config: ViTConfig, pool: str) -> list[Piece]:
    """The pieces of the attention pooling; `pool` is the name of timm's module."""
    head = "image/map_head"
    pieces = [
        Piece(f"{pool}.latent", f"{head}/probe", layout=TWO_ROWS),
        *linear(f"{pool}.proj", f"{head}/attention_out"),
        *layer_norm(f"{pool}.norm", f"{head}/ln"),
        *linear(f"{pool}.mlp.fc1", f"{head}/mlp_in"),
        *linear(f"{pool}.mlp.fc2", f"{head}/mlp_out"),
    ]
    for name, part in (("q", slice(config.width)), ("kv", slice(config.width, None))):
        pieces += [
            Piece(f"{pool}.{name}.weight", f"{head}/qkv_kernel", (slice(None), part), LINEAR),
            Piece(f"{pool}.{name}.bias", f"{head}/qkv_bias", (part,)),
        ]
    return pieces
