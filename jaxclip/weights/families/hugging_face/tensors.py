"""Configs and tensor names of Hugging Face's CLIPModel and SiglipModel.

Follows transformers 5.23, models/clip and models/siglip: configuration_*.py for keys and their defaults, modeling_*.py
for names and computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.towers.layers import Activation
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights.checked_json import Keys
from jaxclip.weights.families.hugging_face.pixels import describe_pixels
from jaxclip.weights.formats.safetensors import Stored
from jaxclip.weights.overrides import Questions
from jaxclip.weights.tensor_map import LINEAR, ONE_ROW, PATCHES, TWO_ROWS, Piece, layer_norm, linear

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_ACTS: dict[Activation, str] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

_BLOCK = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_CLIP_VISION = _BLOCK | {"num_channels": 3, "image_size": 224, "patch_size": 32}
_CLIP_TEXT = _BLOCK | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_SIGLIP_BLOCK = _BLOCK | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_VISION = _SIGLIP_BLOCK | {"num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True}
_SIGLIP_TEXT = _SIGLIP_BLOCK | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": None}

# The keys of our towers and method, besides sizes, that CLIPModel and SiglipModel correspond to.
_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": ({"pool": "class", "ln_pre": True, "patch_bias": False}, {"causal": True, "pool": "end"}),
    "siglip": ({"pool": "map", "ln_pre": False, "patch_bias": True}, {"causal": False, "pool": "last"}),
}
_PROJECTIONS: dict[str, dict[str, bool]] = {
    "clip": {"image_projection": True, "image_projection_bias": False, "text_projection_bias": False},
    "siglip": {"image_projection": False, "image_projection_bias": False, "text_projection_bias": True},
}

_ELSE = "write open_clip's form"

# A block's layers by our name: in CLIPModel and SiglipModel.
_LAYERS = {
    "ln_1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


def describe(
    source: str,
    config: Mapping[str, Any],
    preprocessor: tuple[str, Mapping[str, Any]] | None,
    questions: Questions,
) -> dict[str, Any]:
    """The config of the model in a config.json, for `methods.from_config`.

    Args:
      source: the folder, for messages.
      config: the content of config.json; missing keys have transformers' defaults.
      preprocessor: the name and content of the file with the image preprocessing; None if there is none.
      questions: asked for the preprocessing if there is no such file.

    Raises:
      UserError: the model is not a CLIPModel or SiglipModel, or a value is invalid or not supported by the towers.
    """
    file = f"{source}, config.json"
    kind = _kind(file, config)
    if kind == "clip":
        vision = _tower(file, config, "vision_config", _CLIP_VISION)
        text = _tower(file, config, "text_config", _CLIP_TEXT)
        embed_dim = Keys(file, config, {"projection_dim": 512}).whole("projection_dim")
    else:
        vision = Keys(file, _given(config, "vision_config"), _SIGLIP_VISION, "vision_config")
        text = Keys(file, _given(config, "text_config"), _SIGLIP_TEXT, "text_config")
        vision.choice("vision_use_head", {True: True})
        embed_dim = vision.whole("hidden_size")
        size = "hidden_size" if text.get("projection_size") is None else "projection_size"
        if text.whole(size) != embed_dim:
            raise text.wrong(size, f"vision_config.hidden_size={embed_dim}")
    vision.choice("num_channels", {3: 3})
    image_size = vision.whole("image_size")
    image_keys, text_keys = _TOWERS[kind]
    return {
        "name": kind,
        "image": {
            "name": "vit",
            "image_size": image_size,
            "patch_size": vision.whole("patch_size"),
            **block_keys(vision),
            **image_keys,
        },
        "text": {
            "name": "text",
            "vocab_size": text.whole("vocab_size"),
            "context_length": text.whole("max_position_embeddings"),
            **block_keys(text),
            **text_keys,
        },
        "embed_dim": embed_dim,
        **_PROJECTIONS[kind],
        "pixels": (
            questions.pixels()
            if preprocessor is None
            else describe_pixels(f"{source}, {preprocessor[0]}", preprocessor[1], kind, image_size)
        ),
    }


def check_end(source: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Checks that CLIPModel pools texts at the end token of our tokenizer.

    It pools at the largest id of a text if the config's eos_token_id is 2, as in all configs before 2023, and otherwise
    at the first end token.

    Args:
      source: the folder, for messages.
      config: the argument of `describe`.
      tokenizer: the folder's tokenizer, or another.

    Raises:
      UserError: CLIPModel pools at another token.
    """
    file, end = f"{source}, config.json", tokenizer.end_id
    if _kind(file, config) != "clip":
        return  # SiglipModel pools at the last position, whatever its token
    text = _tower(file, config, "text_config", {"eos_token_id": 49407})
    said, largest = text.get("eos_token_id"), tokenizer.vocab_size - 1
    if type(said) is not int or (largest if said == 2 else said) != end:
        old = f" (2 has texts read at their largest id, which may be {largest})" if said == 2 else ""
        raise text.wrong("eos_token_id", f"{end}, the end token of the vocabulary, where jaxclip reads texts{old}")


def block_keys(keys: Keys) -> dict[str, Any]:
    """The keys of a tower's blocks in jaxclip's config, from transformers' keys."""
    width, heads, hidden = keys.whole("hidden_size"), keys.whole("num_attention_heads"), keys.whole("intermediate_size")
    if width % heads:
        raise keys.wrong("num_attention_heads", f"a divisor of hidden_size={width}")
    return {
        "width": width,
        "layers": keys.whole("num_hidden_layers"),
        "heads": heads,
        "mlp_width": 0 if hidden == 4 * width else hidden,  # as in recipes
        "activation": keys.choice("hidden_act", ACTIVATIONS),
        "eps": keys.positive("layer_norm_eps"),
    }


def _kind(file: str, config: Mapping[str, Any]) -> str:
    keys = Keys(file, config, {"model_type": None})
    kind = keys.get("model_type")
    if kind in ("clip", "siglip"):
        return kind
    if kind == "siglip2":
        # google/siglip2-*-naflex; google/siglip2-base-patch16-224 and all others of one resolution are "siglip".
        raise UserError(
            f"{file}: model_type='siglip2' is SigLIP 2 for images of any shape (NaFlex), which no tower here is; "
            "take a SigLIP 2 of one resolution, whose model_type is 'siglip'"
        )
    raise keys.wrong("model_type", "'clip' or 'siglip': that of both towers, as CLIPModel and SiglipModel save it")


def _given(config: Mapping[str, Any], key: str) -> Any:
    """A tower's object; if it is missing, an empty one."""
    given = config.get(key)
    return {} if given is None else given


def _tower(file: str, config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> Keys:
    """The keys of one of CLIPModel's towers.

    Files before transformers 4.25 may have `text_config_dict` too. If it is not null, it and the defaults replace the
    other values, as in 5.23 (`CLIPConfig.__post_init__`).
    """
    legacy = f"{key}_dict"
    name = key if config.get(legacy) is None else legacy
    return Keys(file, _given(config, name), defaults, name)


def names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors without the position ids that older releases saved."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".embeddings.position_ids")}


def pieces(method: clip.Method) -> list[Piece]:
    """The pieces of a CLIPModel or SiglipModel. Raises UserError for a method that is neither."""
    kind, image, text = towers(method)
    found = [
        Piece("vision_model.embeddings.patch_embedding.weight", "image/patch_kernel", (), PATCHES),
        Piece("vision_model.embeddings.position_embedding.weight", "image/positions"),
        *blocks("vision_model.encoder.layers", "image/transformer", image.width, range(image.layers), _LAYERS),
        *layer_norm("vision_model.post_layernorm", "image/ln_post"),
        Piece("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
        Piece("text_model.embeddings.position_embedding.weight", "text/positions"),
        *blocks("text_model.encoder.layers", "text/transformer", text.width, range(text.layers), _LAYERS),
        *layer_norm("text_model.final_layer_norm", "text/ln_final"),
    ]
    if kind == "clip":
        return [
            *found,
            Piece("vision_model.embeddings.class_embedding", "image/class_embedding"),
            *layer_norm("vision_model.pre_layrnorm", "image/ln_pre"),
            Piece("visual_projection.weight", "image_projection/kernel", (), LINEAR),
            Piece("text_projection.weight", "text_projection/kernel", (), LINEAR),
            Piece("logit_scale", "logit_scale"),
        ]
    head, ours = "vision_model.head", "image/map_head"
    return [
        *found,
        Piece("vision_model.embeddings.patch_embedding.bias", "image/patch_bias"),
        Piece(f"{head}.probe", f"{ours}/probe", (), TWO_ROWS),
        Piece(f"{head}.attention.in_proj_weight", f"{ours}/qkv_kernel", (), LINEAR),
        Piece(f"{head}.attention.in_proj_bias", f"{ours}/qkv_bias"),
        *linear(f"{head}.attention.out_proj", f"{ours}/attention_out"),
        *layer_norm(f"{head}.layernorm", f"{ours}/ln"),
        *linear(f"{head}.mlp.fc1", f"{ours}/mlp_in"),
        *linear(f"{head}.mlp.fc2", f"{ours}/mlp_out"),
        Piece("text_model.head.weight", "text_projection/kernel", (), LINEAR),
        Piece("text_model.head.bias", "text_projection/bias"),
        Piece("logit_scale", "logit_scale", (), ONE_ROW),
        Piece("logit_bias", "logit_bias", (), ONE_ROW),
    ]


def blocks(theirs: str, transformer: str, width: int, numbers: range, layers: Mapping[str, str]) -> Iterator[Piece]:
    """The pieces of the stacked blocks of a transformer.

    Args:
      theirs: the prefix of their blocks' numbers.
      transformer: our path of the transformer.
      width: the width of the blocks.
      numbers: the numbers of their blocks; ours are numbered from 0.
      layers: their names of "q", "k", "v", "ln_1", "attention_out", "ln_2", "mlp_in" and "mlp_out" in a block.
    """
    ours = f"{transformer}/blocks"
    for number, their_number in enumerate(numbers):
        named = {name: f"{theirs}.{their_number}.{layer}" for name, layer in layers.items()}
        at: tuple[int | slice, ...] = (number,)
        yield from layer_norm(named["ln_1"], f"{ours}/ln_1", at)
        for third, name in enumerate("qkv"):
            columns = slice(third * width, (third + 1) * width)
            yield Piece(f"{named[name]}.weight", f"{ours}/qkv_kernel", (number, slice(None), columns), LINEAR)
            yield Piece(f"{named[name]}.bias", f"{ours}/qkv_bias", (number, columns))
        yield from linear(named["attention_out"], f"{ours}/attention_out", at)
        yield from layer_norm(named["ln_2"], f"{ours}/ln_2", at)
        yield from linear(named["mlp_in"], f"{ours}/mlp_in", at)
        yield from linear(named["mlp_out"], f"{ours}/mlp_out", at)


def towers(method: clip.Method) -> tuple[str, ViTConfig, TextConfig]:
    """The kind of a method, "clip" for CLIPModel or "siglip" for SiglipModel, and its towers.

    Raises:
      UserError: the method is neither; the message names the first key that differs.
    """
    kind = "siglip" if "logit_bias" in method.scalars else "clip"
    model = "SiglipModel" if kind == "siglip" else "CLIPModel"
    image, text = method.image, method.text
    for tower, config, wanted in (("image", image, ViTConfig), ("text", text, TextConfig)):
        if not isinstance(config, wanted):
            raise UserError(
                f"{tower}.name={config.name!r}: Hugging Face's {model} has no such tower; write open_clip's form"
            )
    assert isinstance(image, ViTConfig) and isinstance(text, TextConfig)
    wanted_keys: tuple[tuple[str, Any, Mapping[str, Any]], ...] = (
        ("image.", image, _TOWERS[kind][0]),
        ("text.", text, _TOWERS[kind][1]),
        ("", method, _PROJECTIONS[kind]),
    )
    for where, config, keys in wanted_keys:
        for key, value in keys.items():
            if getattr(config, key) != value:
                raise UserError(f"{where}{key}={getattr(config, key)!r}: Hugging Face's {model} has {value!r}; {_ELSE}")
    return kind, image, text


def config_of(method: clip.Method, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of a model, with which transformers opens it as CLIPModel or SiglipModel.

    Raises:
      UserError: there is no such model, or it would pool texts at another token.
    """
    kind, image, text = towers(method)
    if kind == "clip":
        _check_end(tokenizer, text.context_length)
    vision_config = {
        "model_type": f"{kind}_vision_model",
        **_block_of(image),
        "num_channels": 3,
        "image_size": image.image_size,
        "patch_size": image.patch_size,
    }
    text_config = {
        "model_type": f"{kind}_text_model",
        **_block_of(text),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": tokenizer.start_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    config: dict[str, Any] = {"model_type": kind, "vision_config": vision_config, "text_config": text_config}
    if kind == "clip":
        vision_config["projection_dim"] = text_config["projection_dim"] = method.embed_dim
        return config | {"architectures": ["CLIPModel"], "projection_dim": method.embed_dim}
    text_config["projection_size"] = method.embed_dim
    return config | {"architectures": ["SiglipModel"]}


def _block_of(config: ViTConfig | TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.block.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": _ACTS[config.activation],
        "layer_norm_eps": config.eps,
    }


def _check_end(tokenizer: Tokenizer, context_length: int) -> None:
    """Raises UserError unless texts are pooled at their first end token, as in CLIPModel."""
    end = tokenizer.end_id
    if end == 2:
        raise UserError(
            "the vocabulary's end token has id 2, for which Hugging Face's CLIPModel looks for the largest id instead "
            f"(it takes a config with 2 for one of OpenAI's old ones); {_ELSE}"
        )
    if end is not None:
        tokens, places = tokenizer(["", "a photo of a dog"], context_length)
        is_end = tokens == end
        if is_end.any(axis=1).all() and np.array_equal(is_end.argmax(axis=1), places):
            return
    raise UserError(
        "Hugging Face's CLIPModel reads a text at its first end token, which is not where texts of this vocabulary are "
        f"read; {_ELSE}"
    )
