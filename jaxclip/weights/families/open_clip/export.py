"""Writer of the open_clip_config.json with which open_clip builds the same model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

from jaxclip.data.tokenizers.clip import ClipTokenizer
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxclip.data.tokenizers.tokenizer import Tokenizer
from jaxclip.errors import UserError
from jaxclip.methods.clip import Method
from jaxclip.towers.layers import Activation
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights.families import timm

# The ids of a text in OpenAI's vocabulary, which identify it.
_TEXT, _IDS = "a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]


def config_of(method: Method, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of open_clip_config.json, as JSON values.

    open_clip contains OpenAI's vocabulary; it reads any other from the tokenizer files of the folder.

    Args:
      method: the model's method.
      tokenizer: the model's tokenizer.

    Raises:
      UserError: open_clip (3.3) cannot build the model, or would pool its texts at another token.
    """
    image, text = towers(method)
    activations = {text.activation}
    # timm's towers have the activation in their name, and ResNets have none.
    if isinstance(image, ViTConfig) and image.pool == "class":
        activations.add(image.activation)
    if "quick_gelu" in activations and len(activations) > 1:
        raise _cannot(f"activations {' and '.join(sorted(activations))}; quick_gelu is of both its towers or of none")
    model: dict[str, Any] = {"embed_dim": method.embed_dim}
    if "quick_gelu" in activations:
        model["quick_gelu"] = True
    if method.text_projection_bias:
        model["custom_text"] = True  # consistent with the prefix of the tensors' names
    if "logit_bias" in method.scalars:
        # Without these the model has no bias to load.
        model |= {"init_logit_scale": math.log(10), "init_logit_bias": -10}
    return {
        "model_cfg": model | {"vision_cfg": _vision(method, image), "text_cfg": _text(method, text, tokenizer)},
        "preprocess_cfg": {
            "mean": list(method.pixels.mean),
            "std": list(method.pixels.std),
            "interpolation": method.pixels.interpolation,
            "resize_mode": {"crop": "shortest", "squash": "squash"}[method.pixels.resize],
        },
    }


def towers(method: Method) -> tuple[ViTConfig | ModifiedResNetConfig, TextConfig]:
    """The image and the text tower of a method. Raises UserError if open_clip has no such towers."""
    image, text = method.image, method.text
    if not isinstance(text, TextConfig):
        raise _cannot(f"a {text.name} for its text tower")
    if isinstance(image, ModifiedResNetConfig):
        if not method.image_projection_bias:
            raise _cannot("a ModifiedResNet and image_projection_bias=False")
        return image, text
    if method.image_projection_bias:
        raise _cannot(f"image_projection_bias=True and a {image.name}")
    if not isinstance(image, ViTConfig):
        raise _cannot(f"a {image.name} for its image tower")
    if image.pool == "map" and timm.trunk_name(image) is None:
        others = (dataclasses.replace(image, activation=activation) for activation in get_args(Activation))
        if near := next(filter(None, map(timm.trunk_name, others)), None):
            raise _cannot(f"activation={image.activation} in an image tower that otherwise is timm's {near}")
        keys = [*(field.name for field in dataclasses.fields(timm.Trunk)), "eps", "ln_pre", "patch_bias"]
        own = ", ".join(f"{key}={getattr(image, key)}" for key in keys)
        raise _cannot(f"an image tower of {own}, which is none of timm's SigLIP models")
    if image.pool == "class" and image.patch_bias:
        raise _cannot("a class token and a patch_bias")
    if image.pool == "class" and not method.image_projection:
        raise _cannot("a class token and no image_projection")
    return image, text


def _cannot(what: str) -> UserError:
    return UserError(f"the model has {what}, and open_clip no such model: keep it in jaxclip's own form")


def _vision(method: Method, image: ViTConfig | ModifiedResNetConfig) -> dict[str, Any]:
    if isinstance(image, ModifiedResNetConfig):
        return {"image_size": image.image_size, "layers": list(image.layers), "width": image.width, "patch_size": None}
    dropped = {"patch_dropout": image.patch_drop} if image.patch_drop else {}
    if image.pool == "map":
        return {
            "image_size": image.image_size,
            "timm_model_name": timm.trunk_name(image),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "linear" if method.image_projection else "none",
            **dropped,
        }
    head_width = image.width // image.heads
    return {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        **({} if head_width == 64 else {"head_width": head_width}),
        **({} if image.ln_pre else {"no_ln_pre": True}),
        **_block(image),
        **dropped,
    }


def _text(method: Method, text: TextConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "heads": text.heads,
        **({} if text.causal else {"no_causal_mask": True}),
        **({"proj_bias": True} if method.text_projection_bias else {}),
        **({"pool_type": "last"} if text.pool == "last" else _end(tokenizer)),
        **_block(text),
        **_vocabulary(tokenizer),
    }


def _block(tower: ViTConfig | TextConfig) -> dict[str, Any]:
    width, hidden = tower.width, tower.block.hidden
    # Rounded up as in the published configs: open_clip rounds width * ratio down to a whole number.
    ratio = math.ceil(hidden * 10_000 / width) / 10_000
    if int(width * ratio) != hidden:
        ratio = (hidden + 0.5) / width
    return {
        "width": width,
        "layers": tower.layers,
        **({} if hidden == 4 * width else {"mlp_ratio": ratio}),
        **({"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}),
        **({} if tower.eps == 1e-5 else {"norm_kwargs": {"eps": tower.eps}}),
    }


def _end(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys for open_clip's pooling of texts: at the largest id, or at a given end token."""
    end = tokenizer.end_id
    if end is None or end == tokenizer.start_id:
        raise _cannot("a vocabulary without an end token of its own, where its texts are read")
    return {} if end == tokenizer.vocab_size - 1 else {"pool_type": "eos", "eos_id": end}


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys for open_clip's tokenizer and its text cleaning."""
    files = {"hf_tokenizer_name": "tokenizer"}  # any name: for a local folder, open_clip uses the files there
    if isinstance(tokenizer, ClipTokenizer):
        is_openais = tokenizer.vocab_size == 49408 and tokenizer([_TEXT], len(_IDS))[0][0].tolist() == _IDS
        if is_openais and tokenizer.pad_id == 0:
            return {}
        return files | {"tokenizer_kwargs": {"clean": "lower"}}
    if isinstance(tokenizer, SentencePieceTokenizer):
        clean = {"canonical": "canonicalize", "lower": "lower", "none": "whitespace"}[tokenizer.clean]
        return files | {"tokenizer_kwargs": {"clean": clean}}
    # "siglip" is part of the tokenizer's file: open_clip's own cleaning would also repair texts.
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.clean not in (None, "siglip"):
        return files | {"tokenizer_kwargs": {"clean": tokenizer.clean}}
    return files
