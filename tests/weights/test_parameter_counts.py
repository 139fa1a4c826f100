"""Parameter counts of the recipes' models compared with the published ones."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import pytest

from jaxclip import methods
from jaxclip.weights.families import open_clip
from jaxclip.weights.overrides import Answers, Questions

# recipe: (image tower, text tower), from the published models. The whole has one more, the temperature.
COUNTS = {
    "rn50": (38_316_896, 63_690_240),
    "rn101": (56_259_936, 63_428_096),
    "rn50x4": (87_137_080, 91_163_520),
    "rn50x16": (167_328_912, 123_650_304),
    "rn50x64": (420_380_352, 202_877_952),
    "vit_b32": (87_849_216, 63_428_096),
    "vit_b16": (86_192_640, 63_428_096),
    "vit_l14": (303_966_208, 123_650_304),
    "vit_l14_336": (304_293_888, 123_650_304),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_recipes_have_the_published_models_numbers_of_parameters(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    method = methods.from_config(config.method.to_dict())
    params, _ = methods.abstract_variables(method)
    counts = {"image": 0, "text": 0, "logit_scale": 0}
    for part, tree in params.items():
        # The published towers end in their projections.
        counts[part.removesuffix("_projection")] += sum(leaf.size for leaf in jax.tree.leaves(tree))
    image, text = COUNTS[name]
    assert counts == {"image": image, "text": text, "logit_scale": 1}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_siglip_has_the_published_models_number_of_parameters():
    config = importlib.import_module("configs.siglip_b16").get_config()
    params, _ = methods.abstract_variables(methods.from_config(config.method.to_dict()))
    # open_clip's ViT-B-16-SigLIP.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 203_155_970


@pytest.mark.parametrize(
    ("image", "text", "embed_dim", "count"),
    [
        # open_clip's ViT-H-14, ViT-g-14 and ViT-bigG-14: width, layers, head width, ratio of the MLP; width, layers.
        ((1280, 32, 80, 4.0), (1024, 24), 1024, 986_109_441),
        ((1408, 40, 88, 4.3637), (1024, 24), 1024, 1_366_678_273),
        ((1664, 48, 104, 4.9231), (1280, 32), 1280, 2_539_567_105),
    ],
)
def test_laions_models_have_open_clips_number_of_parameters(image, text, embed_dim, count):
    vision = dict(zip(("width", "layers", "head_width", "mlp_ratio"), image, strict=True))
    config = {
        "embed_dim": embed_dim,
        "vision_cfg": vision | {"image_size": 224, "patch_size": 14},
        "text_cfg": dict(zip(("width", "layers"), text, strict=True)) | {"heads": text[0] // 64},
    }
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    written = {"model_cfg": config, "preprocess_cfg": pixels}
    keys = open_clip.describe("here", {}, written, Questions("here", Answers()))
    params, _ = methods.abstract_variables(methods.from_config(keys))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
