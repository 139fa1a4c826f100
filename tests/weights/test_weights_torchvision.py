"""torchvision's and timm's ResNets: complete mapping of arrays, and sizes from shapes."""

from __future__ import annotations

import pytest
from weight_layouts import Tensor, assert_covered_once, shapes_of, tensors_for

from jaxclip import methods
from jaxclip.errors import UserError
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.families import torchvision

TEXT = {"vocab_size": 10, "context_length": 4, "width": 8, "layers": 1, "heads": 1}


def image_shapes(layers: tuple[int, ...], width: int = 64) -> dict[str, tuple[int, ...]]:
    """Of an image tower."""
    image = {"name": "resnet", "image_size": 224, "layers": layers, "width": width}
    method = methods.from_config({"name": "clip", "image": image, "text": TEXT, "embed_dim": 8})
    return {path: shape for path, shape in shapes_of(method).items() if path.startswith("image/")}


@pytest.mark.parametrize(("layers", "tensors"), [((3, 4, 6, 3), 265), ((3, 4, 23, 3), 520)])
def test_every_number_is_in_one_tensor(layers, tensors):
    pieces = torchvision.pieces(ResNetConfig(224, layers))
    assert_covered_once(pieces, image_shapes(layers))
    # ResNet-50 has 161 parameters and 53 pairs of running averages, less the classifier's two; -101 likewise.
    assert len(pieces) == tensors


@pytest.mark.parametrize(("layers", "width"), [((3, 4, 6, 3), 64), ((1, 2, 3, 4), 16)])
def test_the_shapes_say_the_sizes(layers, width):
    config = ResNetConfig(224, layers, width)
    tensors = tensors_for(torchvision.pieces(config), image_shapes(layers, width))
    others = {"fc.weight": Tensor((1000, 2048)), "fc.bias": Tensor((1000,)), "bn1.num_batches_tracked": Tensor(())}
    assert torchvision.is_one(tensors | others)
    assert torchvision.names(tensors | others) == tensors
    found = torchvision.describe("it", tensors)
    assert ResNetConfig(**found) == config


def test_other_networks_are_rejected():
    tensors = tensors_for(torchvision.pieces(ResNetConfig(224)), image_shapes((3, 4, 6, 3)))
    assert not torchvision.is_one({f"visual.{name}": tensor for name, tensor in tensors.items()})
    assert not torchvision.is_one({name: tensor for name, tensor in tensors.items() if "conv3" not in name})
    for shape in ((32, 3, 3, 3), (64,)):
        with pytest.raises(UserError, match=r"conv1\.weight.*7, 7"):
            torchvision.describe("it", tensors | {"conv1.weight": Tensor(shape)})
