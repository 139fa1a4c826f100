"""Conversion between jaxclip's image preprocessing and Hugging Face's preprocessor_config.json.

Since transformers 5, its content is "image_processor" in processor_config.json. Follows transformers 5.23,
models/clip/image_processing_clip.py and models/siglip/image_processing_siglip.py, and the old CLIPFeatureExtractor,
whose `size` and `crop_size` were plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxclip.config import PixelsConfig
from jaxclip.weights.checked_json import Keys, is_number
from jaxclip.weights.overrides import HALF

_NAMING = ("image_processor_type", "feature_extractor_type")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_ANY: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": False,
    "do_pad": None,
    "crop_pct": None,
}
_CLIP = _ANY | {
    "image_mean": PixelsConfig.mean,
    "image_std": PixelsConfig.std,
    "resample": 3,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
}
_SIGLIP = _ANY | {
    "image_mean": HALF["mean"],
    "image_std": HALF["std"],
    "resample": 3,
    "size": {"height": 224, "width": 224},
}
# The defaults of missing keys, by processor.
_DEFAULTS = {
    "CLIPFeatureExtractor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "CLIPImageProcessorFast": _CLIP,
    "CLIPImageProcessorPil": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
    "SiglipImageProcessorFast": _SIGLIP,
    "SiglipImageProcessorPil": _SIGLIP,
}


def describe_pixels(file: str, content: Mapping[str, Any], kind: str, image_size: int) -> dict[str, Any]:
    """The keys of `config.PixelsConfig` from an image processor's config.

    Args:
      file: the name of the file, for messages.
      content: its untrusted content.
      kind: the model's kind, "clip" or "siglip".
      image_size: the model's image size in pixels.

    Raises:
      UserError: a value is invalid, or jaxclip's preprocessing does not support it; the message names the key.
    """
    named = Keys(file, content, dict.fromkeys(_NAMING))
    naming = next((key for key in _NAMING if named.get(key) is not None), None)
    own = _CLIP if kind == "clip" else _SIGLIP
    defaults = own if naming is None else named.choice(naming, _DEFAULTS)
    keys = Keys(file, content, defaults)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        keys.choice(key, {True: True})
    if keys.get("do_pad") is not None:
        keys.choice("do_pad", {False: False})
    if keys.get("crop_pct") is not None:
        raise keys.wrong("crop_pct", "left out: neither CLIP nor SigLIP resizes to more than it crops")
    if abs(keys.positive("rescale_factor") * 255 - 1) > 1e-6:
        raise keys.wrong("rescale_factor", "1/255")
    return {
        "mean": _channels(keys, "image_mean", 0),
        "std": _channels(keys, "image_std", 1e-6),
        "resize": _resize(keys, image_size),
        "interpolation": keys.choice("resample", _RESAMPLE),
    }


def _channels(keys: Keys, key: str, least: float) -> tuple[float, float, float]:
    values = keys.get(key)
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(is_number(value) and least <= value <= 255 for value in values)
    ):
        raise keys.wrong(key, f"three numbers of at least {least}")
    return float(values[0]), float(values[1]), float(values[2])


def _resize(keys: Keys, image_size: int) -> str:
    """The `resize` of `config.PixelsConfig`."""
    crops = keys.choice("do_center_crop", {True: True, False: False})
    size = keys.get("size")
    square = {"height": image_size, "width": image_size}
    if crops and keys.get("crop_size") not in (image_size, square):
        raise keys.wrong("crop_size", f"the model's image_size, {image_size}")
    if _is_mapping_of(size, square):
        return "squash"
    if size != image_size and not _is_mapping_of(size, {"shortest_edge": image_size}):
        raise keys.wrong("size", f"the model's image_size, {image_size}, as shortest_edge or as height and width")
    if not crops:
        raise keys.wrong("do_center_crop", "true where size is that of the short side")
    return "crop"


def _is_mapping_of(value: Any, wanted: Mapping[str, int]) -> bool:
    # Files saved by newer releases contain nulls.
    return isinstance(value, Mapping) and {key: size for key, size in value.items() if size is not None} == wanted


def pixels_of(pixels: PixelsConfig, kind: str, image_size: int) -> dict[str, Any]:
    """The preprocessor_config.json of a model, the inverse of `describe_pixels`."""
    square = {"height": image_size, "width": image_size}
    crops = pixels.resize == "crop"
    # SigLIP's processor has no crop.
    named = "SiglipImageProcessor" if kind == "siglip" and not crops else "CLIPImageProcessor"
    content: dict[str, Any] = {
        "image_processor_type": named,
        "processor_class": "SiglipProcessor" if kind == "siglip" else "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size} if crops else square,
        "resample": next(number for number, name in _RESAMPLE.items() if name == pixels.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }
    if named == "CLIPImageProcessor":
        content |= {"do_center_crop": crops, "crop_size": square}
    return content
