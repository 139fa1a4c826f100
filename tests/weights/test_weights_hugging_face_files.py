"""Exported Hugging Face folders: equal ids, image preprocessing and model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tokenizers as library
from paths import MODELS
from weight_layouts import shapes_of

from jaxclip import methods
from jaxclip.config import PixelsConfig
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import wordpiece
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.towers import TextConfig, ViTConfig
from jaxclip.weights import tensor_map
from jaxclip.weights.families import hugging_face
from jaxclip.weights.families.hugging_face.files import write_files, write_tokenizer
from jaxclip.weights.formats.safetensors import open_tensors
from jaxclip.weights.formats.safetensors_writer import write_tensors
from jaxclip.weights.overrides import Answers, Questions

DATA = MODELS
PIXELS = PixelsConfig()
TEXTS = [
    "",
    "a photo of a dog",
    "Hello, World!  It's 12 o'clock!!",
    "wow ! great!",
    "naïve Straßen café, e\u0301",
    "猫の写真 😀",
    "don\u2019t \u201cquote\u201d me",
    " tabs\tand\nlines ",
    "!!! ...",
    "we've they'll I'm 3.14 #hash @me",
    "x\x07y\x1cz",
    "dog " * 100,
    "word" * 100,
]


def described(config, preprocessor=None):
    found = preprocessor if preprocessor is None else ("preprocessor_config.json", preprocessor)
    return hugging_face.describe("there", config, found, Questions("there", Answers(preprocess="clip")))


@pytest.fixture(scope="module")
def own() -> tokenizers.Tokenizer:
    """A vocabulary of 1,500 ids at most, the last of which ends a text."""
    return tokenizers.train(TEXTS * 3, 1500)


def clip_method(tokenizer, pixels=PIXELS) -> clip.Method:
    image = ViTConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, activation="gelu")
    text = TextConfig(vocab_size=tokenizer.vocab_size, context_length=24, width=8, layers=1, heads=2)
    return clip.Method(image, text, 4, pixels)


def siglip_method(tokenizer, pixels=PIXELS):
    block = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = block | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 24}
    config = {"model_type": "siglip", "vision_config": block | {"image_size": 32}, "text_config": text}
    return dataclasses.replace(methods.from_config(described(config)), pixels=pixels)


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_written_vocabulary_gives_the_ids_through_the_tokenizers_library(tmp_path, own):
    write_files(tmp_path, clip_method(own), own)
    theirs = [row.ids for row in library.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(TEXTS)]
    np.testing.assert_array_equal(theirs, own(TEXTS, 24)[0])


def test_the_written_vocabulary_is_opened_as_the_same(tmp_path, own):
    write_files(tmp_path, clip_method(own), own)
    for path in (tmp_path, tmp_path / "vocab.json"):
        np.testing.assert_array_equal(tokenizers.load(path)(TEXTS, 24)[0], own(TEXTS, 24)[0])


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_written_files_describe_the_same_model(tmp_path, own, resize, interpolation):
    pixels = PixelsConfig((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize, interpolation)
    for method in (clip_method(own, pixels=pixels), siglip_method(own, pixels)):
        write_files(tmp_path, method, own)
        again = described(read(tmp_path, "config.json"), read(tmp_path, "preprocessor_config.json"))
        assert methods.from_config(again) == method


def test_a_padding_token_is_never_mistaken_for_one_of_the_text(tmp_path, own):
    write_tokenizer(tmp_path, clip_method(own), own)
    settings = read(tmp_path, "tokenizer_config.json")
    assert (settings["pad_token"], settings["split_special_tokens"]) == ("<|endoftext|>", False)
    assert "model_input_names" not in settings
    write_tokenizer(tmp_path, siglip_method(own), own)
    settings = read(tmp_path, "tokenizer_config.json")
    # What SigLIP's tower sees has to be what it was trained on, and no mask may hide it.
    assert (settings["pad_token"], settings["split_special_tokens"]) == ("!", True)
    assert settings["model_input_names"] == ["input_ids"]
    assert "!" not in [token["content"] for token in read(tmp_path, "tokenizer.json")["added_tokens"]]


def test_a_wordpiece_vocabulary_is_written_as_it_is(tmp_path):
    tokenizer = wordpiece.train(TEXTS, 200)
    write_files(tmp_path, clip_method(tokenizer), tokenizer)
    assert (tmp_path / "tokenizer.json").read_text() == tokenizer.to_json()
    special = read(tmp_path, "special_tokens_map.json")
    assert special == {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}


def test_a_sentencepiece_model_is_written_as_siglips(tmp_path):
    tokenizer = tokenizers.load(DATA / "siglip_form.model")
    write_files(tmp_path, siglip_method(tokenizer), tokenizer)
    assert (tmp_path / "spiece.model").read_bytes() == (DATA / "siglip_form.model").read_bytes()
    settings = read(tmp_path, "tokenizer_config.json")
    assert settings["tokenizer_class"] == "SiglipTokenizer"
    assert (settings["eos_token"], settings["pad_token"], settings["model_max_length"]) == ("</s>", "</s>", 24)
    with pytest.raises(UserError, match="at its first end token"):
        write_files(tmp_path, clip_method(tokenizer), tokenizer)


@pytest.mark.parametrize("make", [clip_method, siglip_method])
@pytest.mark.parametrize("limit", [1 << 30, 2000], ids=["one file", "shards"])
def test_written_tensors_are_read_as_they_were(tmp_path, own, make, limit):
    method = make(own)
    shapes, generator = shapes_of(method), np.random.default_rng(0)
    arrays = {path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    path = write_tensors(tmp_path, "model", tensor_map.write(arrays, hugging_face.pieces(method)), limit=limit)
    tensors = hugging_face.names(open_tensors(path))
    tensor_map.check("there", tensors, hugging_face.pieces(method), shapes)
    for piece in hugging_face.pieces(method):
        np.testing.assert_array_equal(
            piece.layout.to_ours(tensors[piece.name].read()), arrays[piece.path][piece.where], err_msg=piece.name
        )
