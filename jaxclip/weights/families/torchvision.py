"""ResNets with the tensor names of torchvision and timm (torchvision/models/resnet.py), most of which CLIP's share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxclip.errors import UserError
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.formats.safetensors import Stored
from jaxclip.weights.tensor_map import CONVOLUTION, Piece

IMAGE_SIZE = 224  # pixels, the resolution of ImageNet's weights, which does not follow from shapes


def is_one(tensors: Mapping[str, Stored]) -> bool:
    """Whether tensors have the names of a ResNet with bottlenecks, without a prefix."""
    return "conv1.weight" in tensors and "layer1.0.conv3.weight" in tensors


def is_other(tensors: Mapping[str, Stored]) -> bool:
    """Whether tensors have the names of a ResNet that `describe` has no tower for, such as ResNet-18."""
    return "layer1.0.conv2.weight" in tensors and not is_one(tensors)


def names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors without the classifier and the batch counts, which jaxclip's towers do not have."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }


def describe(source: str, tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The image tower's config, from the tensors' names and shapes.

    Args:
      source: the name of the file, for messages.
      tensors: tensors for which `is_one` is true.

    Raises:
      UserError: the stem is not one 7x7 convolution but, as in some variants, three convolutions.
    """
    shape = tensors["conv1.weight"].shape
    if len(shape) != 4 or shape[1:] != (3, 7, 7):
        raise UserError(
            f"{source}: conv1.weight has the shape {shape}, and a ResNet's is (width, 3, 7, 7); take a plain ResNet-50"
        )
    return {"name": "resnet", "image_size": IMAGE_SIZE, "layers": stage_sizes(tensors, ""), "width": shape[0]}


def stage_sizes(tensors: Mapping[str, Stored], prefix: str) -> tuple[int, int, int, int]:
    """The number of bottlenecks in each of the four stages, whose names begin with `prefix`."""
    first, second, third, fourth = (count(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4))
    return first, second, third, fourth


def count(tensors: Mapping[str, Stored], prefix: str) -> int:
    """The number of layers, which are numbered after a prefix in the tensors' names."""
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def pieces(config: ResNetConfig) -> list[Piece]:
    """The pieces of an image tower."""
    return [
        Piece("conv1.weight", "image/conv1_kernel", layout=CONVOLUTION),
        *batch_norm("bn1", "image/bn1"),
        *stages(config.layers, ""),
    ]


def stages(layers: tuple[int, int, int, int], prefix: str) -> list[Piece]:
    """The pieces of the four stages.

    Args:
      layers: the number of bottlenecks in each.
      prefix: the prefix of the tensors' names.
    """
    found = []
    for stage, blocks in enumerate(layers, 1):
        for block in range(blocks):
            theirs, ours = f"{prefix}layer{stage}.{block}", f"image/layer{stage}_{block}"
            for conv in (1, 2, 3):
                found.append(Piece(f"{theirs}.conv{conv}.weight", f"{ours}/conv{conv}_kernel", layout=CONVOLUTION))
                found += batch_norm(f"{theirs}.bn{conv}", f"{ours}/bn{conv}")
            if block == 0:
                found.append(Piece(f"{theirs}.downsample.0.weight", f"{ours}/downsample_kernel", layout=CONVOLUTION))
                found += batch_norm(f"{theirs}.downsample.1", f"{ours}/downsample_bn")
    return found


def batch_norm(theirs: str, ours: str) -> list[Piece]:
    """The pieces of a torch.nn.BatchNorm2d without its batch count."""
    kinds = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Piece(f"{theirs}.{name}", f"{ours}/{kind}") for name, kind in kinds.items()]


def batch_counts(pieces: Iterable[Piece]) -> dict[str, np.ndarray]:
    """The unused batch count of each BatchNorm among pieces, by name, without which torch's strict loading fails."""
    averages = (piece.name for piece in pieces if piece.name.endswith(".running_mean"))
    return {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in averages}
