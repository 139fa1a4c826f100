"""Hugging Face's CLIPModel, SiglipModel and BertModel: config.json and tensor names."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import tokenizers as library
from weight_layouts import Tensor, assert_covered_once, shapes_of, sizes_of, tensors_for

from jaxclip import methods
from jaxclip.config import PixelsConfig
from jaxclip.data import tokenizers
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.parsing import parse
from jaxclip.towers import TextConfig, ViTConfig
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.weights.families import bert, hugging_face
from jaxclip.weights.overrides import Answers, Questions

SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
H14 = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32}

# What published config.json say of their models, and how many parameters these have (transformers counts the same).
PUBLISHED = {
    "openai/clip-vit-base-patch32": (
        {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": 512,
            "logit_scale_init_value": 2.6592,
            "text_config": {"model_type": "clip_text_model", "eos_token_id": 2, "bos_token_id": 0, "vocab_size": 49408},
            "text_config_dict": None,
            "vision_config": {"model_type": "clip_vision_model", "patch_size": 32, "attention_dropout": 0.0},
            "vision_config_dict": None,
        },
        151_277_313,
    ),
    "openai/clip-vit-large-patch14": (
        {
            "model_type": "clip",
            "projection_dim": 768,
            "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            "vision_config": L14 | {"patch_size": 14},
        },
        427_616_513,
    ),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (
        {
            "model_type": "clip",
            "projection_dim": 1024,
            "text_config": {"hidden_size": 1, "hidden_act": "relu"},
            "text_config_dict": L14 | {"hidden_act": "gelu"},
            "vision_config": {},
            "vision_config_dict": H14 | {"hidden_act": "gelu", "patch_size": 14},
        },
        986_109_441,
    ),
    "google/siglip-base-patch16-224": (
        {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "text_config": {"model_type": "siglip_text_model", "vocab_size": 32000},
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        203_155_970,
    ),
    "google/siglip-so400m-patch14-384": (
        {
            "model_type": "siglip",
            "text_config": SO400M,
            "vision_config": SO400M | {"image_size": 384, "patch_size": 14},
        },
        877_960_498,
    ),
    "google/siglip2-base-patch16-224": (
        {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "text_config": {"vocab_size": 256000, "projection_size": 768},
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        375_187_970,
    ),
}


def described(config, preprocessor=None):
    found = preprocessor if preprocessor is None else ("preprocessor_config.json", preprocessor)
    return hugging_face.describe("there", config, found, Questions("there", Answers(preprocess="clip")))


def published(name):
    return methods.from_config(described(PUBLISHED[name][0]))


@pytest.fixture(scope="module")
def own() -> tokenizers.Tokenizer:
    """A vocabulary whose last id ends a text."""
    return tokenizers.train(["a photo of a dog", "two dogs"], 600)


def clip_method(tokenizer, **keys) -> clip.Method:
    image = ViTConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, activation="gelu")
    text = TextConfig(vocab_size=tokenizer.vocab_size, context_length=24, width=8, layers=1, heads=2)
    return dataclasses.replace(clip.Method(image, text, 4), **keys)


# ------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_a_model_of_the_published_size(name):
    assert sizes_of(published(name)) == PUBLISHED[name][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_array_is_covered_once(name):
    method = published(name)
    assert_covered_once(hugging_face.pieces(method), shapes_of(method))


def test_names_and_shapes_are_transformers():
    method = published("openai/clip-vit-base-patch32")
    asked = tensors_for(hugging_face.pieces(method), shapes_of(method))
    assert len(asked) == 398  # of CLIPModel's state_dict
    for name, shape in {
        "logit_scale": (),
        "text_projection.weight": (512, 512),
        "visual_projection.weight": (512, 768),
        "vision_model.embeddings.class_embedding": (768,),
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, 768),
        "vision_model.pre_layrnorm.bias": (768,),
        "vision_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "text_model.encoder.layers.0.self_attn.k_proj.weight": (512, 512),
        "text_model.encoder.layers.11.self_attn.out_proj.bias": (512,),
        "text_model.final_layer_norm.weight": (512,),
    }.items():
        assert asked[name].shape == shape
    method = published("google/siglip-so400m-patch14-384")
    asked = tensors_for(hugging_face.pieces(method), shapes_of(method))
    assert len(asked) == 888
    for name, shape in {
        "logit_scale": (1,),
        "logit_bias": (1,),
        "vision_model.embeddings.patch_embedding.bias": (1152,),
        "vision_model.embeddings.position_embedding.weight": (729, 1152),
        "vision_model.head.probe": (1, 1, 1152),
        "vision_model.head.attention.in_proj_weight": (3456, 1152),
        "vision_model.head.mlp.fc2.weight": (1152, 4304),
        "text_model.head.bias": (1152,),
    }.items():
        assert asked[name].shape == shape


def test_numbers_saved_with_positions_are_no_tensors_and_all_else_is():
    positions = "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"
    assert set(hugging_face.names(dict.fromkeys([*positions, "logit_scale", "more"]))) == {"logit_scale", "more"}


def test_the_towers_are_those_of_the_model_type():
    model = published("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert (model.image.activation, model.image.pool, model.image.heads) == ("gelu", "class", 16)
    assert (model.text.causal, model.text.pool, model.text.eps) == (True, "end", 1e-5)
    model = published("google/siglip2-base-patch16-224")
    assert (model.image.activation, model.image.pool, model.image.eps) == ("gelu_tanh", "map", 1e-6)
    assert (model.text.causal, model.text.pool, model.text.context_length) == (False, "last", 64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_that_is_written_describes_the_same_model(name, own):
    method = published(name)
    again = hugging_face.config_of(method, own)
    assert methods.from_config(described(json.loads(json.dumps(again)))) == method


def test_a_model_that_is_written_is_read_at_the_end_token_of_its_vocabulary(own):
    written = hugging_face.config_of(clip_method(own), own)["text_config"]
    assert (written["eos_token_id"], written["vocab_size"]) == (own.end_id, own.vocab_size)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "model_type=null must be"),
        ({"model_type": ["clip"]}, "model_type="),
        ({"model_type": "clip_vision_model"}, 'model_type="clip_vision_model" must be'),
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"model_type": "clip", "projection_dim": None}, "projection_dim=null must be a whole number"),
        ({"model_type": "clip", "text_config": []}, "text_config must hold keys"),
        ({"model_type": "clip", "text_config_dict": "x"}, "text_config_dict must hold keys"),
        ({"model_type": "clip", "vision_config": {"hidden_size": -768}}, "vision_config.hidden_size=-768"),
        ({"model_type": "clip", "vision_config": {"hidden_size": 768.0}}, "vision_config.hidden_size=768.0"),
        ({"model_type": "clip", "vision_config": {"hidden_size": True}}, "vision_config.hidden_size=true"),
        ({"model_type": "clip", "vision_config": {"num_attention_heads": 7}}, "num_attention_heads=7 must be a div"),
        ({"model_type": "clip", "vision_config": {"num_channels": 1}}, "vision_config.num_channels=1 must be 3"),
        ({"model_type": "clip", "vision_config": {"image_size": [224, 224]}}, r"image_size=\[224, 224\] must be"),
        ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, 'text_config.hidden_act="relu" must be'),
        ({"model_type": "clip", "text_config": {"layer_norm_eps": 0}}, "text_config.layer_norm_eps=0 must be"),
        ({"model_type": "clip", "text_config": {"layer_norm_eps": math.nan}}, "text_config.layer_norm_eps=NaN"),
        ({"model_type": "clip", "text_config": {"vocab_size": 10**5000}}, "text_config.vocab_size=a long number"),
        ({"model_type": "clip", "text_config_dict": {"vocab_size": 0}}, "text_config_dict.vocab_size=0"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head=false must be true"),
        ({"model_type": "siglip", "text_config": {"projection_size": 512}}, "projection_size=512 must be"),
    ],
)
def test_unsupported_and_invalid_values_are_refused_by_their_key(config, said):
    with pytest.raises(UserError, match=said):
        described(config)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"image": ModifiedResNetConfig(224, 64, (3, 4, 6, 3))}, "image.name='modified_resnet'"),
        ({"text": BertConfig(vocab_size=9, context_length=24, width=8, layers=1, heads=2)}, "text.name='bert'"),
        ({"text": TextConfig(9, 24, 8, 1, 2, causal=False)}, "text.causal=False"),
        ({"image": ViTConfig(16, 8, 8, 1, 2, ln_pre=False)}, "image.ln_pre=False"),
    ],
)
def test_a_model_unsupported_by_transformers_is_refused_by_its_key(own, part, said):
    method = clip_method(own, **part)
    for function in (lambda: hugging_face.config_of(method, own), lambda: hugging_face.pieces(method)):
        with pytest.raises(UserError, match=said):
            function()


def test_a_vocabulary_whose_end_token_clipmodel_would_not_pool_at_is_refused():
    backend = library.Tokenizer(library.models.WordLevel({"?": 0, "[S]": 1, "[E]": 2, "a": 3}, unk_token="?"))
    backend.pre_tokenizer = library.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[S]", "[E]"])
    for single, said in (("[S] $A [E]", "has id 2"), ("[S] $A [S]", "at its first end token"), ("$A", "at its first")):
        backend.post_processor = library.processors.TemplateProcessing(
            single=single, special_tokens=[("[S]", 1), ("[E]", 2)]
        )
        backend.enable_padding(pad_id=0, pad_token="?")
        tokenizer = tokenizers.from_json(backend.to_str())
        with pytest.raises(UserError, match=said):
            hugging_face.config_of(clip_method(tokenizer), tokenizer)


# ------------------------------------------------------------------------------------------------------ pixels

OLD = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3}


@pytest.mark.parametrize(
    ("content", "kind", "pixels"),
    [
        (OLD, "clip", PixelsConfig()),
        ({}, "clip", PixelsConfig()),
        ({}, "siglip", PixelsConfig((0.5,) * 3, (0.5,) * 3, "squash")),
        (
            {"image_processor_type": "CLIPImageProcessor", "resample": 2},
            "siglip",
            PixelsConfig(interpolation="bilinear"),
        ),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, "clip", PixelsConfig()),
        (
            {"size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": [0, 0, 0]},
            "clip",
            PixelsConfig(mean=(0.0,) * 3, resize="squash"),
        ),
    ],
)
def test_a_processors_image_preprocessing_is_read(content, kind, pixels):
    keys = described({"model_type": kind}, content)["pixels"]
    assert parse(PixelsConfig, keys) == pixels


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"resample": 0}, "resample=0 must be 2 or 3"),
        ({"resample": "3"}, 'resample="3" must be'),
        ({"do_resize": False}, "do_resize=false must be true"),
        ({"do_normalize": False}, "do_normalize=false must be true"),
        ({"do_rescale": False}, "do_rescale=false must be true"),
        ({"rescale_factor": 1}, "rescale_factor=1 must be 1/255"),
        ({"do_center_crop": False}, "do_center_crop=false must be true"),
        ({"size": 256}, "size=256 must be the model's image_size, 224"),
        ({"size": {"longest_edge": 224}}, "size="),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size="),
        ({"image_mean": [0.5]}, r"image_mean=\[0.5\] must be three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std="),
        ({"image_std": [0.5, 0.5, "0.5"]}, "image_std="),
        (
            {"image_processor_type": "ViTImageProcessor"},
            'image_processor_type="ViTImageProcessor" must be "CLIPFeature',
        ),
        ({"feature_extractor_type": ["CLIPFeatureExtractor"]}, "feature_extractor_type="),
        ({"do_pad": True}, "do_pad=true must be false"),
        ({"crop_pct": 0.9}, "crop_pct=0.9 must be left out"),
    ],
)
def test_unsupported_image_preprocessing_is_refused_by_its_key(content, said):
    with pytest.raises(UserError, match=f"there, preprocessor_config.json: .*{said}"):
        described({"model_type": "clip"}, content)


def test_preprocessing_is_asked_for_if_no_file_has_it():
    asked = Questions("there", Answers())
    keys = hugging_face.describe("there", {"model_type": "clip"}, None, asked)
    with pytest.raises(UserError, match="preprocess="):
        asked.check(keys)


# -------------------------------------------------------------------------------------------------------- BERT


def test_bert_base_is_covered_in_its_two_halves():
    config = parse(BertConfig, bert.describe("there", {"model_type": "bert"}))
    assert config == BertConfig()
    method = clip.Method(ViTConfig(16, 8, 8, 1, 2), config, 4)
    shapes = {path: shape for path, shape in shapes_of(method).items() if path.startswith("text/")}
    assert shapes["text/lower/blocks/qkv_bias"] == shapes["text/upper/blocks/qkv_bias"] == (6, 3 * 768)
    assert_covered_once(bert.pieces(config), shapes)
    asked = tensors_for(bert.pieces(config), shapes)
    assert (len(asked), sum(math.prod(tensor.shape) for tensor in asked.values())) == (197, 108_891_648)
    assert asked["encoder.layer.11.intermediate.dense.weight"].shape == (3072, 768)


def test_names_of_berts_with_heads_are_brought_to_berts_own():
    names = ["bert.embeddings.LayerNorm.gamma", "bert.encoder.layer.0.output.LayerNorm.beta", "bert.pooler.dense.bias"]
    found = bert.names({name: Tensor(()) for name in [*names, "cls.predictions.bias", "bert.embeddings.position_ids"]})
    assert list(found) == ["embeddings.LayerNorm.weight", "encoder.layer.0.output.LayerNorm.bias"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_type": "roberta"}, 'model_type="roberta" must be "bert"'),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type="),
        ({"type_vocab_size": 1}, "type_vocab_size=1 must be 2"),
        ({"is_decoder": True}, "is_decoder=true must be false"),
        ({"hidden_act": "relu"}, 'hidden_act="relu"'),
    ],
)
def test_another_bert_is_refused_by_its_key(keys, said):
    with pytest.raises(UserError, match=said):
        bert.describe("there", {"model_type": "bert"} | keys)
