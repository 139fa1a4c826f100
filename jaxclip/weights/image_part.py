"""Image towers alone: export to torchvision and timm, and a form of ours for `config.init_from`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxclip import checkpoint, methods, sharding
from jaxclip.config import PixelsConfig
from jaxclip.errors import UserError
from jaxclip.parsing import parse, to_dict
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights import tensor_map
from jaxclip.weights.export import new_folder
from jaxclip.weights.families import timm, torchvision
from jaxclip.weights.formats.safetensors_writer import write_tensors
from jaxclip.weights.tensor_map import Piece

Form = Literal["torchvision", "timm", "jaxclip"]

KEY = "image_tower"  # of the JSON values of a folder in jaxclip's form


@dataclasses.dataclass(frozen=True)
class ImagePart:
    """The part of a method that its image tower's weights are valid with.

    Attributes:
      image: the tower.
      pixels: image preprocessing.
    """

    image: ViTConfig | ModifiedResNetConfig | ResNetConfig
    pixels: PixelsConfig

    def abstract_variables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The shapes and dtypes of the tower's parameters and batch statistics, under "image"."""
        tower = nnx.eval_shape(lambda: self.image.init(rngs=nnx.Rngs(params=0)))
        _, params, stats = nnx.split(tower, nnx.Param, nnx.BatchStat)
        both = [nnx.to_pure_dict(part) for part in (params, stats)]
        return {"image": both[0]}, {"image": both[1]} if both[1] else {}


def part_of(method: Any) -> ImagePart:
    """The image part of a method. Raises UserError if the method has no image tower."""
    image = getattr(method, "image", None)
    if not isinstance(image, ViTConfig | ModifiedResNetConfig | ResNetConfig):
        raise UserError(f"--part=image: method {methods.to_config(method)['name']} has no image tower")
    return ImagePart(image, method.pixels)


def save(folder: pathlib.Path, form: Form, part: ImagePart, params: Mapping[str, Any], stats: Mapping[str, Any]) -> int:
    """Writes an image tower into a new folder.

    Args:
      folder: the folder to create; existing content is never changed.
      form: "torchvision" or "timm", for a model.safetensors with their tensors, of all layers but the classifier;
        "jaxclip", for a folder that `config.init_from` opens.
      part: the image part of the model's method.
      params, stats: of the whole model, nested dicts of arrays.

    Returns:
      The number of parameters written.

    Raises:
      UserError: the form does not support the tower, or the folder already exists or cannot be written.
    """
    own = {"image": params["image"]}, {"image": stats["image"]} if "image" in stats else {}
    listed = [] if form == "jaxclip" else _pieces(form, part.image)
    with new_folder(folder) as unfinished:
        if form == "jaxclip":
            checkpoint.save_variables(unfinished, *own, {KEY: to_dict(part)})
        else:
            unfinished.mkdir()
            arrays = tensor_map.flat(own[0]) | tensor_map.flat(own[1])
            counts = [
                (name, value.shape, value.dtype, lambda value=value: value)
                for name, value in torchvision.batch_counts(listed).items()
            ]
            # torch, torchvision and timm open only a single file.
            write_tensors(unfinished, "model", [*tensor_map.write(arrays, listed), *counts], limit=1 << 62)
    return sum(leaf.size for leaf in jax.tree.leaves(own[0]))


def read(folder: pathlib.Path, saved: Mapping[str, Any], mesh: Mesh) -> tuple[ImagePart, dict[str, jax.Array]]:
    """The image part in a folder of jaxclip's form, and its arrays by path.

    Args:
      folder: the folder.
      saved: its JSON values, which have `KEY`.
      mesh: the devices.
    """
    part = parse(ImagePart, saved[KEY], str(folder))
    abstract = sharding.placed(mesh, *part.abstract_variables())
    params, stats = checkpoint.load_variables(folder, *abstract)
    return part, tensor_map.flat(params) | tensor_map.flat(stats)


def _pieces(form: Form, image: ViTConfig | ModifiedResNetConfig | ResNetConfig) -> list[Piece]:
    """The pieces of a tower in another project's form."""
    if isinstance(image, ResNetConfig):
        return torchvision.pieces(image)
    if form == "timm" and isinstance(image, ViTConfig):
        return timm.pieces(image)
    can = "'resnet' and 'vit'" if form == "timm" else "'resnet'"
    raise UserError(
        f"--to={form} writes image towers named {can}, and this one is {image.name!r}; --to=jaxclip writes all"
    )
