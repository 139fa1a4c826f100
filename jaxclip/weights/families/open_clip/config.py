"""Parser of open_clip_config.json, the model config in open_clip folders; the keys are those of open_clip's model.py.

{"model_cfg": {"embed_dim", "quick_gelu", "vision_cfg": {...}, "text_cfg": {...}, ...}, "preprocess_cfg": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.weights.checked_json import Keys, is_number, shown
from jaxclip.weights.families import timm
from jaxclip.weights.overrides import Questions

# open_clip's keys and their defaults (CLIP, CLIPVisionCfg, CLIPTextCfg). First the keys that jaxclip's towers support.
_REQUIRED = {"embed_dim", "vision_cfg", "text_cfg"}
_MODEL = {"quick_gelu": False, "init_logit_bias": None}
_BLOCKS = {"layers": 12, "mlp_ratio": 4.0, "act_kwargs": None, "norm_kwargs": None}
_VISION = _BLOCKS | {
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "image_size": 224,
    "patch_dropout": 0.0,
    "no_ln_pre": False,
    "timm_model_name": None,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
}
_TEXT = _BLOCKS | {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
}
# Keys of which jaxclip's towers support only these values.
_PLAIN_BLOCKS = {
    "ls_init_value": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "output_tokens": False,
}
_PLAIN_MODEL = {"multimodal_cfg": None}
_PLAIN_VIT = _PLAIN_BLOCKS | {"attentional_pool": False, "pos_embed_type": "learnable", "pool_type": "tok"}
_PLAIN_TEXT = _PLAIN_BLOCKS | {"hf_model_name": None, "embed_cls": False, "proj_type": "linear"}
# Keys without effect on the model, or without effect by themselves.
_IGNORED_MODEL = {"custom_text", "output_dict", "cast_dtype", "init_logit_scale", "nonscalar_logit_scale"}
_IGNORED_VISION = {
    *("block_type", "final_ln_after_pool", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path"),
}
_IGNORED_TEXT = {
    *("block_type", "final_ln_after_pool", "pad_id", "eos_id", "hf_tokenizer_name", "tokenizer_mode"),
    *("tokenizer_kwargs", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}

# Interpolations of preprocess_cfg: "random" applies to training, and is bicubic at evaluation.
_INTERPOLATION = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
_RESIZE = {"shortest": "crop", "squash": "squash"}
_FLAG = {False: False, True: True}


def describe_config(source: str, config: Mapping[str, Any], has_bias: bool, questions: Questions) -> dict[str, Any]:
    """The method's config of a model in an open_clip_config.json.

    Args:
      source: the folder, for messages.
      config: the file's untrusted content.
      has_bias: whether the weights have a bias of the logits.
      questions: asked for the preprocessing if the file does not contain it.

    Returns:
      A config for `methods.from_config`.

    Raises:
      UserError: a key is missing, unknown or of a wrong type, or its value is not supported by jaxclip's towers.
    """
    model = _keys(source, "model_cfg", config.get("model_cfg"), _MODEL, _PLAIN_MODEL, _REQUIRED | _IGNORED_MODEL)
    _check_plain(model, _PLAIN_MODEL)
    vision = _keys(source, "vision_cfg", model.get("vision_cfg"), _VISION, _PLAIN_VIT, _IGNORED_VISION)
    text = _keys(source, "text_cfg", model.get("text_cfg"), _TEXT, _PLAIN_TEXT, _IGNORED_TEXT)
    quick = model.choice("quick_gelu", _FLAG)
    projections = {"image_projection": True, "image_projection_bias": False}
    if vision.get("timm_model_name"):
        image = _trunk(vision)
        projections["image_projection"] = vision.choice("timm_proj", {"none": False, "linear": True})
    elif isinstance(vision.get("layers"), list | tuple):
        image = _modified_resnet(vision)
        projections["image_projection_bias"] = True
    else:
        image = _vit(vision, quick)
    return {
        "name": "siglip" if has_bias or model.get("init_logit_bias") is not None else "clip",
        "embed_dim": model.whole("embed_dim"),
        "image": image,
        "text": _text(text, quick),
        **projections,
        "text_projection_bias": text.choice("proj_bias", _FLAG),
        "pixels": _pixels(source, config.get("preprocess_cfg"), questions),
    }


def check_end(source: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Checks that open_clip pools texts at the end token of our tokenizer.

    Args:
      source: the folder, for messages.
      config: the argument of `describe`.
      tokenizer: the folder's tokenizer, or another.

    Raises:
      UserError: open_clip pools at another token, text.argmax() or the first eos_id.
    """
    defaults = {"pool_type": _TEXT["pool_type"], "eos_id": 2}
    text = Keys(source, config["model_cfg"]["text_cfg"], defaults, "text_cfg")
    pool, end = text.get("pool_type"), tokenizer.end_id
    if pool == "eos" and (type(text.get("eos_id")) is not int or text.get("eos_id") != end):
        raise text.wrong("eos_id", f"{end}, the end token of the vocabulary, where jaxclip reads texts")
    if pool == "argmax" and end != tokenizer.vocab_size - 1:
        raise text.wrong(
            "pool_type",
            f'"eos" with eos_id={end}: it has texts read at their largest id, which may be {tokenizer.vocab_size - 1}, '
            f"and jaxclip reads them at the end token of the vocabulary, {end}",
        )


def _keys(
    source: str, where: str, values: Any, known: dict[str, Any], plain: dict[str, Any], ignored: set[str]
) -> Keys:
    keys = Keys(source, values, known | plain, where)
    for key in values:
        if key not in known and key not in plain and key not in ignored:
            raise UserError(f"{source}: {where}.{str(key)[:80]!r} is no key of open_clip's that jaxclip knows")
    return keys


def _check_plain(keys: Keys, plain: Mapping[str, Any]) -> None:
    for key, value in plain.items():
        found = keys.get(key)
        if type(found) is not type(value) or found != value:
            raise keys.wrong(key, f"{json.dumps(value)}: jaxclip's towers have nothing else")


def _side(keys: Keys, key: str) -> int:
    """A size in pixels, given once or as two equal numbers."""
    value = keys.get(key)
    if not isinstance(value, list | tuple):
        return keys.whole(key)
    if len(value) != 2 or value[0] != value[1] or type(value[0]) is not int or not 1 <= value[0] < 1 << 24:
        raise keys.wrong(key, "a whole number, or the same one twice: jaxclip's images are square")
    return value[0]


def _share(keys: Keys, key: str) -> float:
    value = keys.get(key)
    if not is_number(value) or not 0 <= value < 1:
        raise keys.wrong(key, "a number from 0 to 1")
    return float(value)


def _options(keys: Keys, key: str, known: str) -> Mapping[str, Any]:
    options = keys.get(key)
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not set(options) <= {known}:
        raise keys.wrong(key, f"an object with {known} alone")
    return options


def _blocks(keys: Keys, quick: bool) -> dict[str, Any]:
    """The keys of a tower's blocks except the number of heads."""
    width, ratio = keys.whole("width"), keys.positive("mlp_ratio")
    if not 1 <= width * ratio < 1 << 24:
        raise keys.wrong("mlp_ratio", f"a number that makes a sound width of an MLP of width={width}")
    hidden = int(width * ratio)
    eps = _options(keys, "norm_kwargs", "eps").get("eps", 1e-5)
    if not is_number(eps) or not 0 < eps < 1:
        raise keys.wrong("norm_kwargs", "an object whose eps is between 0 and 1")
    act = _options(keys, "act_kwargs", "approximate")
    approximate = act.get("approximate", "none")
    if approximate not in ("none", "tanh") or quick and act:
        raise keys.wrong("act_kwargs", '{"approximate": "tanh"} without quick_gelu, or null')
    return {
        "width": width,
        "layers": keys.whole("layers"),
        "mlp_width": 0 if hidden == 4 * width else hidden,
        "activation": "quick_gelu" if quick else "gelu_tanh" if approximate == "tanh" else "gelu",
        "eps": float(eps),
    }


def _vit(vision: Keys, quick: bool) -> dict[str, Any]:
    _check_plain(vision, _PLAIN_VIT)
    blocks = _blocks(vision, quick)
    heads = blocks["width"] // vision.whole("head_width")
    if heads < 1 or blocks["width"] % heads:
        raise vision.wrong("head_width", f"one that width={blocks['width']} has whole heads of")
    return {
        "name": "vit",
        "image_size": _side(vision, "image_size"),
        "patch_size": _side(vision, "patch_size"),
        "heads": heads,
        "ln_pre": vision.choice("no_ln_pre", {False: True, True: False}),
        "patch_drop": _share(vision, "patch_dropout"),
        **blocks,
    }


def _modified_resnet(vision: Keys) -> dict[str, Any]:
    _check_plain(vision, {"head_width": 64})
    layers = vision.get("layers")
    if len(layers) != 4 or not all(type(count) is int and 1 <= count < 1 << 24 for count in layers):
        raise vision.wrong("layers", "a number, or four whole numbers, the bottlenecks of each stage")
    return {
        "name": "modified_resnet",
        "image_size": _side(vision, "image_size"),
        "width": vision.whole("width"),
        "layers": tuple(layers),
    }


def _trunk(vision: Keys) -> dict[str, Any]:
    name = vision.get("timm_model_name")
    # The part after a dot names weights.
    trunk = timm.TRUNKS.get(name.partition(".")[0]) if isinstance(name, str) else None
    if trunk is None:
        raise vision.wrong(
            "timm_model_name", "one of SigLIP's, vit_..._siglip_...: jaxclip has no other towers of timm's"
        )
    _check_plain(vision, {"timm_pool": "map", "timm_proj_bias": False})
    if _side(vision, "image_size") != trunk.image_size:
        raise vision.wrong("image_size", f"{trunk.image_size}, that of timm_model_name={shown(name)}")
    return timm.keys(trunk) | {"patch_drop": _share(vision, "patch_dropout")}


def _text(text: Keys, quick: bool) -> dict[str, Any]:
    _check_plain(text, _PLAIN_TEXT)
    blocks = _blocks(text, quick)
    heads = text.whole("heads")
    if blocks["width"] % heads:
        raise text.wrong("heads", f"a divisor of width={blocks['width']}")
    return {
        "name": "text",
        "vocab_size": text.whole("vocab_size"),
        "context_length": text.whole("context_length"),
        "heads": heads,
        "causal": text.choice("no_causal_mask", {False: True, True: False}),
        "pool": text.choice("pool_type", {"argmax": "end", "eos": "end", "last": "last"}),
        **blocks,
    }


def _pixels(source: str, preprocess: Any, questions: Questions) -> dict[str, Any]:
    """The keys of `config.PixelsConfig`; missing or null values of a preprocess_cfg have open_clip's defaults."""
    if preprocess is None:
        return questions.pixels()
    defaults = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
    given = preprocess
    if isinstance(preprocess, Mapping):
        given = {key: value for key, value in preprocess.items() if value is not None}
    keys = Keys(source, given, defaults, "preprocess_cfg")
    keys.choice("mode", {"RGB": None})
    pixels: dict[str, Any] = {}
    for key in ("mean", "std"):
        if key in given:
            value = keys.get(key)
            values = value if isinstance(value, list | tuple) else [value] * 3
            if len(values) != 3 or not all(map(is_number, values)) or key == "std" and min(values) <= 0:
                raise keys.wrong(key, "three numbers, of red, green and blue")
            pixels[key] = tuple(map(float, values))
    return pixels | {
        "interpolation": keys.choice("interpolation", _INTERPOLATION),
        "resize": keys.choice("resize_mode", _RESIZE),
    }
