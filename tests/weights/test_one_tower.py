"""Weights of one tower where a model of two is asked for: each is named as what it is, with where it can be used."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file
from starting import started
from test_init_from_one_tower import bert_folder, deit_file, resnet_file

import jaxclip
from jaxclip.errors import UserError


def refusal(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        jaxclip.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: pathlib.Path, *names: str) -> pathlib.Path:
    save_file({name: np.zeros(1, np.float32) for name in names}, path)
    return path


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_bert_is_used_through_its_folder(tmp_path, prefix):
    folder, _ = bert_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    if not prefix:
        written(file, "embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight")
    for path in (file, folder):
        assert refusal(path) == (
            f"{path} is a text encoder of the BERT family, one tower alone: config.init_from={folder} with "
            "config.init_only='^text/' trains from it, if config.json there says model_type 'bert'"
        )
    # In config.init_from, the file without its folder is refused alike.
    with pytest.raises(UserError, match="a text encoder of the BERT family.*config.init_from="):
        started(str(file))


def test_a_resnet_is_used_in_init_from(tmp_path):
    path, _ = resnet_file(tmp_path)
    assert refusal(path) == (
        f"{path} is a ResNet of torchvision's or timm's, one tower alone: config.init_from=FILE.safetensors with "
        "config.init_only='^image/' trains from it"
    )


def test_a_vision_transformer_of_timms_is_used_in_init_from(tmp_path):
    path, _ = deit_file(tmp_path)
    assert refusal(pathlib.Path(path)) == (
        f"{path} is a vision transformer of timm's, one tower alone: config.init_from={path} with "
        "config.init_only='^image/' trains from it, if it is read at a class token, as DeiT is"
    )


OTHERS = {
    "Hugging Face's vision transformer": ["vit.embeddings.patch_embeddings.projection.weight"],
    "torchvision's vision transformer": ["conv_proj.weight", "class_token"],
    "a ResNet without bottlenecks or with another stem": ["conv1.weight", "layer1.0.conv1.weight",
                                                          "layer1.0.conv2.weight"],
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_image_towers_that_nothing_here_opens_are_named(tmp_path, kind):
    path = written(tmp_path / "x.safetensors", *OTHERS[kind])
    said = f"{path} is {kind}, an image encoder alone, which jaxclip does not open: take a model of two towers, or for "
    assert refusal(path) == said + "config.init_from the .safetensors of a ResNet-50, 101 or 152, or of timm's DeiT"


def test_googles_vision_transformer_is_named(tmp_path):
    np.savez(tmp_path / "B_16.npz", **{"embedding/kernel": np.zeros(1), "Transformer/encoder_norm/scale": np.zeros(1)})
    assert "B_16.npz is Google's vision transformer, an image encoder alone" in refusal(tmp_path / "B_16.npz")


def test_unknown_tensors_are_named_and_what_can_be_opened(tmp_path):
    path = written(tmp_path / "x.safetensors", *(f"model.layers.{number}.weight" for number in range(5)))
    said = "is no model that jaxclip knows: it has model.layers.0.weight, model.layers.1.weight, model.layers.2.weight "
    assert f"{path} {said}and 2 more; accepted are a run's workdir" in refusal(path)


def test_a_text_encoder_beside_an_image_tower_is_not_called_a_bert(tmp_path):
    path = written(tmp_path / "x.safetensors", "bert.embeddings.word_embeddings.weight", "visual.class_embedding")
    assert "BERT" not in refusal(path) and "visual.ln_pre.weight" in refusal(path)
