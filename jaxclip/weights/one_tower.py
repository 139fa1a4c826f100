"""Refusal of weights that are an image or a text encoder alone, by what they are."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from jaxclip.errors import UserError
from jaxclip.weights.families import bert, timm, torchvision
from jaxclip.weights.formats.safetensors import Stored

# A tensor of each kind of vision transformer that jaxclip does not open.
_VITS = {
    "embeddings.patch_embeddings.projection.weight": "Hugging Face's",
    "vit.embeddings.patch_embeddings.projection.weight": "Hugging Face's",
    "conv_proj.weight": "torchvision's",
    "Transformer/encoder_norm/scale": "Google's",
}


def refuse(path: pathlib.Path, tensors: Mapping[str, Stored]) -> None:
    """Raises UserError, with what to do, if weights that are to be a two-tower model are one tower.

    Args:
      path: the file or the folder of the weights.
      tensors: its tensors under the names in the file.
    """
    if bert.is_one(tensors):
        folder = path if path.is_dir() else path.parent
        raise UserError(
            f"{path} is a text encoder of the BERT family, one tower alone: config.init_from={folder} with "
            "config.init_only='^text/' trains from it, if config.json there says model_type 'bert'"
        )
    if torchvision.is_one(tensors):
        raise UserError(
            f"{path} is a ResNet of torchvision's or timm's, one tower alone: config.init_from=FILE.safetensors with "
            "config.init_only='^image/' trains from it"
        )
    other = next((f"{whose} vision transformer" for name, whose in _VITS.items() if name in tensors), None)
    if timm.is_one(tensors):
        raise UserError(
            f"{path} is a vision transformer of timm's, one tower alone: config.init_from={path} with "
            "config.init_only='^image/' trains from it, if it is read at a class token, as DeiT is"
        )
    if torchvision.is_other(tensors):
        other = "a ResNet without bottlenecks or with another stem"
    if other is not None:
        raise UserError(
            f"{path} is {other}, an image encoder alone, which jaxclip does not open: take a model of two towers, or "
            "for config.init_from the .safetensors of a ResNet-50, 101 or 152, or of timm's DeiT"
        )
