"""python tests/golden/make.py FOLDER: reference embeddings, computed by torch, open_clip and transformers.

Writes models.json, with the config of each model and the names and shapes of its tensors, and embeddings.npz, with the
unit embeddings of the images and tokens of `made` by the weights of `made`.
"""

from __future__ import annotations

import copy
import json
import pathlib
import sys

import made
import numpy as np
import open_clip
import torch
import transformers

VOCABULARY = 1000
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
CLIP = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
# Our name: open_clip's, and how many layers the towers keep where it would take too long with all of them.
OPEN_CLIP = {
    "RN50": ("RN50-quickgelu", None, None),
    "RN50x4": ("RN50x4-quickgelu", None, 2),
    "ViT-B-32": ("ViT-B-32", None, None),
    "ViT-B-32-quickgelu": ("ViT-B-32-quickgelu", None, None),
    "ViT-L-14-shallow": ("ViT-L-14-quickgelu", 3, 3),
    "ViT-H-14-shallow": ("ViT-H-14", 2, 2),
    "ViT-g-14-shallow": ("ViT-g-14", 1, 1),
    "SigLIP-B-16": ("ViT-B-16-SigLIP", None, None),
    "SigLIP2-B-16": ("ViT-B-16-SigLIP2", None, 2),
    "SigLIP2-B-32": ("ViT-B-32-SigLIP2-256", None, 2),
}
TEXT = {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "bos_token_id": VOCABULARY - 2, "pad_token_id": 0}
# transformers' classes: configuration, vision and text settings.
HUGGING_FACE = {
    "hf-clip-quick_gelu": (
        transformers.CLIPConfig,
        {"image_size": 96, "patch_size": 16, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
        | {"num_hidden_layers": 3, "hidden_act": "quick_gelu"},
        TEXT
        | {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "max_position_embeddings": 20}
        | {"hidden_act": "quick_gelu", "eos_token_id": VOCABULARY - 1},
    ),
    "hf-clip-gelu": (
        transformers.CLIPConfig,
        {"image_size": 70, "patch_size": 14, "hidden_size": 320, "num_attention_heads": 4, "intermediate_size": 1280}
        | {"num_hidden_layers": 2, "hidden_act": "gelu"},
        TEXT
        | {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 384, "max_position_embeddings": 77}
        | {"hidden_act": "gelu", "eos_token_id": 2},
    ),
    "hf-siglip": (
        transformers.SiglipConfig,
        {"image_size": 97, "patch_size": 16, "hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 538}
        | {"num_hidden_layers": 3},
        TEXT
        | {"hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 538, "max_position_embeddings": 16}
        | {"eos_token_id": 1, "projection_size": 144},
    ),
}


def fill(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Gives a model the weights of `made`; returns the shape of each tensor by its name."""
    state = model.state_dict()
    model.load_state_dict({name: torch.from_numpy(made.values(name, tuple(t.shape))) for name, t in state.items()})
    model.eval()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def normalized(images: np.ndarray, pixels: dict) -> torch.Tensor:
    """What the peers' own transforms make of 8-bit images of the right size."""
    mean, std = (np.asarray(pixels[key], np.float32) for key in ("mean", "std"))
    return torch.from_numpy(((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy())


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=-1).numpy()


def from_open_clip(name: str, vision_layers: int | None, text_layers: int | None) -> tuple[dict, dict]:
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["text_cfg"]["vocab_size"] = VOCABULARY
    if vision_layers:
        config["vision_cfg"]["layers"] = vision_layers
    if text_layers:
        config["text_cfg"]["layers"] = text_layers
    built = copy.deepcopy(config)
    kind = open_clip.CustomTextCLIP if built.pop("custom_text", False) else open_clip.CLIP
    model = kind(**built)
    tensors = fill(model)
    pixels = HALF if "SigLIP" in name else CLIP
    size, context = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    with torch.no_grad():
        image = model.encode_image(normalized(made.images(16, size)[: count(name)], pixels))
        text = model.encode_text(torch.from_numpy(made.tokens(16, context, VOCABULARY)[: count(name)]))
    written = {"model_cfg": config, "preprocess_cfg": {"size": size, "mode": "RGB", "fill_color": 0} | pixels}
    return {"config": written, "tensors": tensors}, {"image": unit(image), "text": unit(text)}


def count(name: str) -> int:
    """Sixteen images and texts where that is quick."""
    return 16 if "B-32" in name or "hf-" in name else 3


def from_transformers(kind: type, vision: dict, text: dict) -> tuple[dict, dict]:
    is_clip = kind is transformers.CLIPConfig
    config = kind(vision_config=vision, text_config=text, **({"projection_dim": 96} if is_clip else {}))
    model = (transformers.CLIPModel if is_clip else transformers.SiglipModel)(config)
    tensors = fill(model)
    size, context = vision["image_size"], text["max_position_embeddings"]
    rows = torch.from_numpy(made.tokens(16, context, VOCABULARY))
    with torch.no_grad():
        pixels = normalized(made.images(16, size), CLIP if is_clip else HALF)
        found = model(input_ids=rows, pixel_values=pixels, interpolate_pos_encoding=False)
    written = json.loads(config.to_json_string(use_diff=True))
    return {"config": written, "tensors": tensors}, {"image": unit(found.image_embeds), "text": unit(found.text_embeds)}


def positions() -> dict[str, np.ndarray]:
    """What open_clip makes of position embeddings of another size: 7 x 7 patches after a class token, 77 tokens."""
    from types import SimpleNamespace

    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    found = {}
    for grid in (3, 7, 12):
        state = {"visual.positional_embedding": torch.from_numpy(made.values("positions", (50, 8)))}
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
        found[f"positions/image/{grid}"] = state["visual.positional_embedding"].numpy()
    for context in (16, 77, 120):
        state = {"positional_embedding": torch.from_numpy(made.values("positions", (77, 8)))}
        resize_text_pos_embed(state, SimpleNamespace(positional_embedding=torch.zeros(context, 8)))
        found[f"positions/text/{context}"] = state["positional_embedding"].numpy()
    return found


def main(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    models: dict = {}
    arrays = positions()
    for ours, (name, vision_layers, text_layers) in OPEN_CLIP.items():
        models[ours], embedded = from_open_clip(name, vision_layers, text_layers)
        arrays |= {f"{ours}/{tower}": value for tower, value in embedded.items()}
    for ours, settings in HUGGING_FACE.items():
        models[ours], embedded = from_transformers(*settings)
        arrays |= {f"{ours}/{tower}": value for tower, value in embedded.items()}
    for name, value in arrays.items():
        if name.startswith("positions"):
            continue
        alike = value @ value.T
        print(f"{name}: {value.shape}, cosines of different inputs up to {(alike - 2 * np.eye(len(alike))).max():.3f}")
    (folder / "models.json").write_text(json.dumps(models, separators=(",", ":")) + "\n")
    np.savez_compressed(folder / "embeddings.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
