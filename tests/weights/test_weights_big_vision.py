"""big_vision's SigLIP files: complete mapping of arrays in both layouts, and errors for invalid files."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from weight_layouts import Tensor, assert_covered_once, shapes_of, tensors_for

from jaxclip import methods
from jaxclip.errors import UserError
from jaxclip.weights import tensor_map
from jaxclip.weights.families import big_vision, hugging_face
from jaxclip.weights.formats.safetensors import open_tensors
from jaxclip.weights.overrides import Answers, Questions

SCANNED = {f"{tower}/encoderblock/": Tensor(()) for tower in ("img/Transformer", "txt/Encoder_0")}
SMALL = {
    "model_type": "siglip",
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 20,
        "patch_size": 5,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 30,
        "max_position_embeddings": 6,
        "projection_size": 24,
    },
}


def questions() -> Questions:
    return Questions("it", Answers(preprocess="siglip"))


def siglip(config=SMALL):
    return methods.from_config(hugging_face.describe("it", config, None, questions()))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    shapes = shapes_of(siglip())
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    return {
        path: np.arange(end - math.prod(shape), end, dtype=np.float32).reshape(shape)
        for (path, shape), end in zip(shapes.items(), ends, strict=True)
    }


@pytest.mark.parametrize("tensors", [{}, SCANNED], ids=["plain", "scanned"])
@pytest.mark.parametrize("config", [SMALL, {"model_type": "siglip"}], ids=["small", "b16"])
def test_every_array_is_covered_once(config, tensors):
    method = siglip(config)
    assert_covered_once(big_vision.pieces(method, tensors), shapes_of(method))


def test_names_and_shapes_are_those_of_the_published_file():
    method = siglip({"model_type": "siglip"})
    plain = tensors_for(big_vision.pieces(method, {}), shapes_of(method))
    scanned = tensors_for(big_vision.pieces(method, SCANNED), shapes_of(method))
    block, attention = "img/Transformer/encoderblock", "MultiHeadDotProductAttention_0"
    for name, shape in {
        "img/embedding/kernel": (16, 16, 3, 768),
        "img/pos_embedding": (1, 196, 768),
        "img/MAPHead_0/probe": (1, 1, 768),
        f"img/MAPHead_0/{attention}/query/kernel": (768, 12, 64),
        "txt/Embed_0/embedding": (32_000, 768),
        "txt/pos_embedding": (1, 64, 768),
        "txt/head/kernel": (768, 768),
        "t": (1,),
        "b": (1,),
    }.items():
        assert plain[name].shape == scanned[name].shape == shape
    for name, shape in {
        f"{attention}/key/kernel": (768, 12, 64),
        f"{attention}/value/bias": (12, 64),
        f"{attention}/out/kernel": (12, 64, 768),
        "MlpBlock_0/Dense_0/kernel": (768, 3072),
        "LayerNorm_1/scale": (768,),
    }.items():
        assert plain[f"{block}_11/{name}"].shape == shape
        assert scanned[f"{block}/{name}"].shape == (12, *shape)


@pytest.mark.parametrize("seen", [{}, SCANNED], ids=["plain", "scanned"])
@pytest.mark.parametrize("prefix", ["params/", ""])
def test_a_file_reads_as_what_it_was_made_of(tmp_path, arrays, seen, prefix):
    written = tensor_map.write(arrays, big_vision.pieces(siglip(), seen))
    state = {"opt/0/count": np.zeros(1, np.float32)} if prefix else {}
    np.savez(tmp_path / "siglip.npz", **{prefix + name: values() for name, _, _, values in written}, **state)
    tensors = big_vision.names(open_tensors(tmp_path / "siglip.npz"))
    method = methods.from_config(big_vision.describe("it", tensors, questions()))
    assert method == siglip()
    listed, shapes = big_vision.pieces(method, tensors), shapes_of(method)
    tensor_map.check("it", tensors, listed, shapes)
    found = {path: np.full(shape, np.nan, np.float32) for path, shape in shapes.items()}
    for piece in listed:
        found[piece.path][piece.where] = piece.layout.to_ours(tensors[piece.name].read())
    for path, values in found.items():
        np.testing.assert_array_equal(values, arrays[path], err_msg=path)


def test_queries_keys_and_values_are_concatenated_with_their_heads_together(arrays):
    tensors = {name: values() for name, _, _, values in tensor_map.write(arrays, big_vision.pieces(siglip(), {}))}
    kernel = arrays["image/transformer/blocks/qkv_kernel"][1]
    key = tensors["img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/kernel"]
    np.testing.assert_array_equal(key[:, 2], kernel[:, 24 + 16 : 24 + 24])
    out = tensors["img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel"]
    np.testing.assert_array_equal(out[2], arrays["image/transformer/blocks/attention_out_kernel"][1][16:24])


def test_pixels_are_asked_for_and_nothing_else():
    asked = Questions("siglip.npz", Answers())
    method = siglip()
    keys = big_vision.describe("siglip.npz", tensors_for(big_vision.pieces(method, {}), shapes_of(method)), asked)
    with pytest.raises(UserError, match="preprocess=") as error:
        asked.check(keys)
    assert "activation=" not in str(error.value).partition("(to jaxclip.load")[0]


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("img/embedding/kernel", None, "it has no img/embedding/kernel"),
        ("img/MAPHead_0/probe", None, "it has no img/MAPHead_0/probe"),
        ("txt/pos_embedding", None, "it has no txt/pos_embedding"),
        ("img/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", None, "it has no img/Transformer/encoderblock_0"),
        ("img/pos_embedding", (16, 24), "img/pos_embedding has the shape"),
        ("txt/Embed_0/embedding", (0, 16), "txt/Embed_0/embedding has the shape"),
        ("img/pos_embedding", (1, 17, 24), "17 patches of 5 x 5 pixels in 3 colors"),
        ("img/embedding/kernel", (5, 4, 3, 24), "16 patches of 5 x 4 pixels in 3 colors"),
        ("img/embedding/kernel", (5, 5, 1, 24), "16 patches of 5 x 5 pixels in 1 colors"),
    ],
)
def test_a_file_that_is_no_siglip_is_refused_by_the_tensor_at_fault(name, shape, said):
    method = siglip()
    tensors = tensors_for(big_vision.pieces(method, {}), shapes_of(method))
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = dataclasses.replace(tensors[name], shape=shape)
    with pytest.raises(UserError, match=said):
        big_vision.describe("it", tensors, questions())
