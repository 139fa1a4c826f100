"""Published models of open_clip: configs and numbers of parameters."""

from __future__ import annotations

import copy
from typing import Any

from jaxclip import methods
from jaxclip.weights.families import open_clip
from jaxclip.weights.overrides import Answers, Questions

ANSWERS = Answers(activation="gelu", preprocess="clip")


def clip(embed: int, vision: dict[str, Any], width: int, layers: int = 12, **more: Any) -> dict[str, Any]:
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": layers}
    return {"embed_dim": embed, **more, "vision_cfg": {"image_size": 224, **vision}, "text_cfg": text}


def resnet(embed: int, size: int, layers: list[int], width: int, text: int) -> dict[str, Any]:
    return clip(embed, {"image_size": size, "layers": layers, "width": width, "patch_size": None}, text)


def vit(layers: int, width: int, patch: int, **more: Any) -> dict[str, Any]:
    return {"layers": layers, "width": width, "patch_size": patch, **more}


def siglip(
    embed: int, trunk: str, vocabulary: int, width: int, heads: int, layers: int, context: int = 64, **more: Any
) -> dict[str, Any]:
    return {
        "embed_dim": embed,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": int(trunk.rpartition("_")[2]),
            "timm_model_name": f"vit_{trunk}",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": width,
            "heads": heads,
            "layers": layers,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            **more,
        },
    }


TANH, SO400M = {"act_kwargs": {"approximate": "tanh"}}, {"mlp_ratio": 3.7362}
HIDDEN = {"g": {"head_width": 88, "mlp_ratio": 4.3637}, "bigG": {"head_width": 104, "mlp_ratio": 4.9231}}
HIDDEN["e"] = {"head_width": 112, "mlp_ratio": 8.5715}

# open_clip's model_configs/*.json, and how many parameters the image tower and the model then have in open_clip 3.3.
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {
    "RN50": (resnet(1024, 224, [3, 4, 6, 3], 64, 512), 38_316_896, 102_007_137),
    "RN101": (resnet(512, 224, [3, 4, 23, 3], 64, 512), 56_259_936, 119_688_033),
    "RN50x4": (resnet(640, 288, [4, 6, 10, 6], 80, 640), 87_137_080, 178_300_601),
    "RN50x16": (resnet(768, 384, [6, 8, 18, 8], 96, 768), 167_328_912, 290_979_217),
    "RN50x64": (resnet(1024, 448, [3, 15, 36, 10], 128, 1024), 420_380_352, 623_258_305),
    "ViT-B-32": (clip(512, vit(12, 768, 32), 512), 87_849_216, 151_277_313),
    "ViT-B-16": (clip(512, vit(12, 768, 16), 512, quick_gelu=True), 86_192_640, 149_620_737),
    "ViT-L-14": (clip(768, vit(24, 1024, 14), 768), 303_966_208, 427_616_513),
    "ViT-L-14-336": (clip(768, vit(24, 1024, 14, image_size=336), 768), 304_293_888, 427_944_193),
    "ViT-H-14": (clip(1024, vit(32, 1280, 14, head_width=80), 1024, 24), 632_076_800, 986_109_441),
    "ViT-g-14": (clip(1024, vit(40, 1408, 14, **HIDDEN["g"]), 1024, 24), 1_012_645_632, 1_366_678_273),
    "ViT-bigG-14": (clip(1280, vit(48, 1664, 14, **HIDDEN["bigG"]), 1280, 32), 1_844_907_264, 2_539_567_105),
    "ViT-e-14": (clip(1280, vit(56, 1792, 14, **HIDDEN["e"]), 1280, 36), 3_807_716_864, 4_581_086_465),
    "ViT-B-16-SigLIP": (siglip(768, "base_patch16_siglip_224", 32_000, 768, 12, 12), 92_884_224, 203_155_970),
    "ViT-B-16-SigLIP-512": (siglip(768, "base_patch16_siglip_512", 32_000, 768, 12, 12), 93_520_128, 203_791_874),
    "ViT-L-16-SigLIP-384": (siglip(1024, "large_patch16_siglip_384", 32_000, 1024, 16, 24), 316_283_904, 652_478_466),
    "ViT-SO400M-14-SigLIP": (
        siglip(1152, "so400m_patch14_siglip_224", 32_000, 1152, 16, 27, 16, **SO400M),
        427_680_704,
        877_360_306,
    ),
    "ViT-SO400M-14-SigLIP-384": (
        siglip(1152, "so400m_patch14_siglip_384", 32_000, 1152, 16, 27, **SO400M),
        428_225_600,
        877_960_498,
    ),
    "ViT-B-16-SigLIP2": (siglip(768, "base_patch16_siglip_224", 256_000, 768, 12, 12, **TANH), 92_884_224, 375_187_970),
    "ViT-B-32-SigLIP2-256": (
        siglip(768, "base_patch32_siglip_256", 256_000, 768, 12, 12, **TANH),
        94_552_320,
        376_856_066,
    ),
    "ViT-L-16-SigLIP2-512": (
        siglip(1024, "large_patch16_siglip_512", 256_000, 1024, 16, 24, **TANH),
        316_742_656,
        882_313_218,
    ),
    "ViT-SO400M-16-SigLIP2-256": (
        siglip(1152, "so400m_patch16_siglip_256", 256_000, 1152, 16, 27, **SO400M, **TANH),
        427_888_064,
        1_135_670_962,
    ),
    "ViT-gopt-16-SigLIP2-384": (
        siglip(1536, "giantopt_patch16_siglip_384", 256_000, 1152, 16, 27, **SO400M, **TANH),
        1_163_659_776,
        1_871_885_426,
    ),
}


def described(model: Any, preprocess: Any = None, tensors: Any = None, answers: Answers = ANSWERS) -> dict[str, Any]:
    questions = Questions("it", answers, binding=False)
    found = open_clip.describe("it", tensors or {}, {"model_cfg": model, "preprocess_cfg": preprocess or {}}, questions)
    questions.check(found)
    return found


def method_of(model: dict[str, Any], preprocess: dict[str, Any] | None = None) -> Any:
    return methods.from_config(described(model, preprocess))


def published(name: str, **changes: Any) -> dict[str, Any]:
    """A published model_cfg with other values, whose keys are written vision__width."""
    model = copy.deepcopy(PUBLISHED[name][0])
    for key, value in changes.items():
        part, _, inner = key.rpartition("__")
        (model[f"{part}_cfg"] if part else model)[inner] = value
    return model
