"""Tensor names of OpenAI's CLIP and of open_clip, which are the same (clip/model.py; open_clip/model.py).

In models of class CustomTextCLIP, the names of the text tower start with "text.". This prefix is added if the text
projection has a bias and removed otherwise. open_clip needs it in the first case, because it converts a text tower
without the prefix only if the projection is a matrix alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.errors import UserError
from jaxclip.methods.clip import Method
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights.families import timm
from jaxclip.weights.families.open_clip.config import describe_config
from jaxclip.weights.families.open_clip.export import towers
from jaxclip.weights.families.torchvision import batch_counts, batch_norm, count, stage_sizes, stages
from jaxclip.weights.formats.safetensors import Stored
from jaxclip.weights.overrides import Questions
from jaxclip.weights.tensor_map import CONVOLUTION, LINEAR, PATCHES, Piece, layer_norm, linear

# Sizes, masks and counts that files may contain besides the parameters.
_NO_PARAMETERS = {
    "input_resolution",
    "context_length",
    "vocab_size",
    "num_batches_tracked",
    "attn_mask",
    "position_ids",
}
# The number of heads of towers by width, from open_clip's model_configs/*.json. Most heads are 64 wide; the image
# towers wider than L (H, g, bigG, e) and SigLIP's so400m have sixteen heads.
_VIT_HEADS = {384: 6, 512: 8, 768: 12, 896: 14, 1024: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
_TEXT_HEADS = {256: 4, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 20}
_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
_TEXT_HEAD = "text.text_projection.weight"  # the name if the projection has a bias
_TRUNK = "visual.trunk."


def names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors that are parameters or running averages, under the names in `pieces`.

    The prefix "module." of DistributedDataParallel is removed, and "text." is added or removed.
    """
    ddp = "module." if all(name.startswith("module.") for name in tensors) else ""
    kept = {
        name.removeprefix(ddp): tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _NO_PARAMETERS
    }
    custom = any(name.removeprefix("text.").startswith("text_projection.") for name in kept)
    renamed = {_text_name(name, custom): tensor for name, tensor in kept.items()}
    # A file with both forms of one name is not changed, so that the error can name both.
    return renamed if len(renamed) == len(kept) else kept


def _text_name(name: str, custom: bool) -> str:
    plain = name.removeprefix("text.")
    if not plain.startswith(_TEXT):
        return name
    return f"text.{plain}" if custom else plain


def describe(
    source: str, tensors: Mapping[str, Stored], config: Mapping[str, Any] | None, questions: Questions
) -> dict[str, Any]:
    """The method's config of weights.

    Args:
      source: the name of the weights, for messages.
      tensors: the result of `names`.
      config: the untrusted content of the config; None for a file without one. Sizes then follow from the shapes, the
        numbers of heads are those of published models with these widths, and other values are asked for.
      questions: collects the missing values.

    Returns:
      A config for `methods.from_config`. `tensor_map.check` verifies that the tensors fit it.

    Raises:
      UserError: jaxclip's towers do not support the model, or the config is invalid.
    """
    if config is not None:
        return describe_config(source, config, "logit_bias" in tensors, questions)
    return _Shapes(source, tensors).describe(questions)


class _Shapes:
    """The config of a model as derived from the shapes of its tensors."""

    def __init__(self, source: str, tensors: Mapping[str, Stored]):
        self._source = source
        self._tensors = tensors

    def describe(self, questions: Questions) -> dict[str, Any]:
        activations = questions.activations()
        projections = {"image_projection": True, "image_projection_bias": False}
        if "visual.class_embedding" in self._tensors:
            image = self._vit(questions) | {"activation": activations[0]}
        elif "visual.attnpool.positional_embedding" in self._tensors:
            image = self._modified_resnet()
            projections["image_projection_bias"] = True
        else:
            image = self._trunk(questions) | {"activation": activations[0]}
            projections["image_projection"] = "visual.head.proj.weight" in self._tensors
        text, embed_dim = self._text(questions)
        return {
            "name": "siglip" if "logit_bias" in self._tensors else "clip",
            "embed_dim": embed_dim,
            **projections,
            "text_projection_bias": _TEXT_HEAD in self._tensors,
            "image": image,
            "text": text | {"activation": activations[1]},
            "pixels": questions.pixels(),
        }

    def _shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        if name not in self._tensors:
            raise UserError(
                f"{self._source} has no tensor {name}: it is none of the kinds of open_clip's models that jaxclip has"
            )
        shape = self._tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise UserError(f"{self._source}: {name} has the shape {shape}, and must have {dimensions} dimensions")
        return shape

    def _vit(self, questions: Questions) -> dict[str, Any]:
        if "visual.ln_pre.weight" not in self._tensors:
            raise UserError(
                f"{self._source} has no visual.ln_pre.weight, as CLIPA's models have none, which jaxclip has no towers "
                "for; if it is another, give its folder with config.json"
            )
        width, _, _, patch = self._shape("visual.conv1.weight", 4)
        return {
            "name": "vit",
            "image_size": questions.image_size(patch, self._grid("visual.positional_embedding", 2, 1)),
            "patch_size": patch,
            "heads": questions.heads("image", width, _VIT_HEADS.get(width)),
            **self._blocks(width, "visual.transformer.resblocks.", "mlp.c_fc"),
        }

    def _trunk(self, questions: Questions) -> dict[str, Any]:
        width, _, _, patch = self._shape(f"{_TRUNK}patch_embed.proj.weight", 4)
        self._shape(f"{_TRUNK}attn_pool.latent", 3)
        return {
            "name": "vit",
            "image_size": questions.image_size(patch, self._grid(f"{_TRUNK}pos_embed", 3, 0)),
            "patch_size": patch,
            "heads": questions.heads("image", width, timm.heads(width)),
            "eps": timm.EPS,
            "pool": "map",
            "ln_pre": False,
            "patch_bias": True,
            **self._blocks(width, f"{_TRUNK}blocks.", "mlp.fc1"),
        }

    def _modified_resnet(self) -> dict[str, Any]:
        return {
            "name": "modified_resnet",
            "image_size": 32 * self._grid("visual.attnpool.positional_embedding", 2, 1),
            "width": self._shape("visual.layer1.0.conv1.weight", 4)[0],
            "layers": stage_sizes(self._tensors, "visual."),
        }

    def _text(self, questions: Questions) -> tuple[dict[str, Any], int]:
        """The text tower and the width of the embedding."""
        custom = _TEXT_HEAD in self._tensors
        prefix = "text." if custom else ""
        vocabulary, width = self._shape(f"{prefix}token_embedding.weight", 2)
        text = {
            "name": "text",
            "vocab_size": vocabulary,
            "context_length": self._shape(f"{prefix}positional_embedding", 2)[0],
            "heads": questions.heads("text", width, _TEXT_HEADS.get(width)),
            **self._blocks(width, f"{prefix}transformer.resblocks.", "mlp.c_fc"),
        }
        if not custom:
            return text, self._shape("text_projection", 2)[1]
        # Among the published models, only SigLIP's have a bias there.
        text |= {"causal": False, "pool": "last", "eps": timm.EPS}
        return text, self._shape(_TEXT_HEAD, 2)[0]

    def _blocks(self, width: int, prefix: str, mlp: str) -> dict[str, Any]:
        hidden = self._shape(f"{prefix}0.{mlp}.weight", 2)[0]
        layers = count(self._tensors, prefix)
        return {"width": width, "layers": layers, "mlp_width": 0 if hidden == 4 * width else hidden}

    def _grid(self, name: str, dimensions: int, others: int) -> int:
        """The number of patches along a side; `others` of the positions do not belong to a patch."""
        tokens = self._shape(name, dimensions)[-2] - others
        if tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
            raise UserError(f"{self._source}: {name} has {tokens} patches, which make no square")
        return math.isqrt(tokens)


def pieces(method: Method) -> list[Piece]:
    """The pieces of a model that open_clip supports.

    Raises:
      UserError: open_clip has no such towers.
    """
    image, text = towers(method)
    projections = [*_image_projection(method, image), *_text_projection(method.text_projection_bias)]
    scalars = [Piece(name, name) for name in method.scalars]
    return [*_image(image), *_text(text, method.text_projection_bias), *projections, *scalars]


def extras(method: Method) -> dict[str, np.ndarray]:
    """The tensors of an open_clip file besides the parameters, by name."""
    return batch_counts(pieces(method))


def _image(config: ViTConfig | ModifiedResNetConfig) -> list[Piece]:
    if isinstance(config, ModifiedResNetConfig):
        return _modified_resnet(config)
    if config.pool == "class":
        return _vit(config)
    return timm.trunk_pieces(config, _TRUNK)


def _image_projection(method: Method, config: ViTConfig | ModifiedResNetConfig) -> list[Piece]:
    kernel = "image_projection/kernel"
    if isinstance(config, ModifiedResNetConfig):
        # The last layer of the attention pool.
        name = "visual.attnpool.c_proj"
        return [Piece(f"{name}.weight", kernel, layout=LINEAR), Piece(f"{name}.bias", "image_projection/bias")]
    if config.pool == "class":
        return [Piece("visual.proj", kernel)]
    return [Piece("visual.head.proj.weight", kernel, layout=LINEAR)] if method.image_projection else []


def _text_projection(has_bias: bool) -> list[Piece]:
    if not has_bias:
        return [Piece("text_projection", "text_projection/kernel")]
    return [
        Piece(_TEXT_HEAD, "text_projection/kernel", layout=LINEAR),
        Piece("text.text_projection.bias", "text_projection/bias"),
    ]


def _modified_resnet(config: ModifiedResNetConfig) -> list[Piece]:
    pieces = [*stages(config.layers, "visual.")]
    for conv in (1, 2, 3):
        pieces.append(Piece(f"visual.conv{conv}.weight", f"image/conv{conv}_kernel", layout=CONVOLUTION))
        pieces += batch_norm(f"visual.bn{conv}", f"image/bn{conv}")
    pieces.append(Piece("visual.attnpool.positional_embedding", "image/attention_pool/positions"))
    for name in ("q", "k", "v"):
        pieces += linear(f"visual.attnpool.{name}_proj", f"image/attention_pool/{name}")
    return pieces


def _vit(config: ViTConfig) -> list[Piece]:
    return [
        Piece("visual.conv1.weight", "image/patch_kernel", layout=PATCHES),
        Piece("visual.class_embedding", "image/class_embedding"),
        Piece("visual.positional_embedding", "image/positions"),
        *(layer_norm("visual.ln_pre", "image/ln_pre") if config.ln_pre else []),
        *_blocks(config.layers, "visual.transformer.resblocks.", "image/transformer/blocks"),
        *layer_norm("visual.ln_post", "image/ln_post"),
    ]


def _text(config: TextConfig, projection_has_bias: bool) -> list[Piece]:
    prefix = "text." if projection_has_bias else ""
    return [
        Piece(f"{prefix}token_embedding.weight", "text/token_embedding"),
        Piece(f"{prefix}positional_embedding", "text/positions"),
        *_blocks(config.layers, f"{prefix}transformer.resblocks.", "text/transformer/blocks"),
        *layer_norm(f"{prefix}ln_final", "text/ln_final"),
    ]


def _blocks(layers: int, theirs: str, ours: str) -> list[Piece]:
    pieces = []
    for layer in range(layers):
        block, where = f"{theirs}{layer}", (layer,)
        pieces += [
            *layer_norm(f"{block}.ln_1", f"{ours}/ln_1", where),
            Piece(f"{block}.attn.in_proj_weight", f"{ours}/qkv_kernel", where, LINEAR),
            Piece(f"{block}.attn.in_proj_bias", f"{ours}/qkv_bias", where),
            *linear(f"{block}.attn.out_proj", f"{ours}/attention_out", where),
            *layer_norm(f"{block}.ln_2", f"{ours}/ln_2", where),
            *linear(f"{block}.mlp.c_fc", f"{ours}/mlp_in", where),
            *linear(f"{block}.mlp.c_proj", f"{ours}/mlp_out", where),
        ]
    return pieces
