"""What recipes share: every key a run has, so that each can be given on the command line."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Every key that is not a method's own, with the values of CLIP's paper where it has one."""
    return ConfigDict(
        {
            "seed": 0,
            "steps": 0,
            "epochs": 0.0,
            "batch_size": 32_768,
            "microbatches": 1,
            "precision": "auto",
            "log_every": 50,
            "eval_every": 2000,
            "checkpoint_every": 1000,
            "keep_checkpoints": 3,
            "profile_steps": (0, 0),
            "init_from": "",
            "init_only": "",
            "mesh": {"data": -1, "fsdp": 1},
            "data": {
                "train": "",
                "eval": "",
                "root": "",
                "vocabulary": "",
                "train_vocabulary": 0,
                "caption_templates": (),
                "shuffle_window": 4096,
                "max_pixels": 64_000_000,
                "max_skip_rate": 0.1,
                "crop_scale": (0.9, 1.0),
                "flip": False,
                "augment": {
                    "affine": (0.0, 0.0, 1.0, 1.0),
                    "rand_augment": (0, 0),
                    "rand_augment_p": 0.5,
                    "color_jitter": (0.0, 0.0, 0.0, 0.0),
                    "color_jitter_p": 0.8,
                    "gray": 0.0,
                    "blur": 0.0,
                    "blur_sigma": (0.1, 2.0),
                },
                "captions": "random",
                "drop_words": 0.0,
            },
            "optimizer": {
                "learning_rate": 5e-4,
                "warmup_steps": 2000,
                "beta1": 0.9,
                "beta2": 0.98,
                "eps": 1e-6,
                "weight_decay": 0.2,
                "clip_norm": 0.0,
                "frozen": "",
            },
            "evals": {},
        }
    )


def vit(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    layers: int,
    remat: str = "none",
    activation: str = "quick_gelu",
    eps: float = 1e-5,
) -> dict:
    """CLIP's vision transformer, with heads of width 64."""
    return {
        "name": "vit",
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "layers": layers,
        "heads": width // 64,
        "mlp_width": 0,
        "activation": activation,
        "eps": eps,
        "pool": "class",
        "ln_pre": True,
        "patch_bias": False,
        "projection": True,
        "scan": True,
        "remat": remat,
        "patch_drop": 0.0,
    }


def modified_resnet(*, image_size: int, width: int, layers: tuple[int, int, int, int], remat: str = "none") -> dict:
    """CLIP's ResNet."""
    return {"name": "modified_resnet", "image_size": image_size, "width": width, "layers": layers, "remat": remat}


def text(*, width: int, layers: int, remat: str = "none", activation: str = "quick_gelu", eps: float = 1e-5) -> dict:
    """CLIP's text transformer with heads of width 64, OpenAI's vocabulary size and context."""
    return {
        "name": "text",
        "vocab_size": 49_408,
        "context_length": 77,
        "width": width,
        "layers": layers,
        "heads": width // 64,
        "mlp_width": 0,
        "activation": activation,
        "eps": eps,
        "causal": True,
        "pool": "end",
        "projection_bias": False,
        "scan": True,
        "remat": remat,
    }


def two_towers(name: str, image: dict, text: dict, embed_dim: int) -> ConfigDict:
    """A method of two towers with CLIP's preprocessing."""
    pixels = {
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
        "resize": "crop",
        "interpolation": "bicubic",
    }
    return ConfigDict({"name": name, "embed_dim": embed_dim, "image": image, "text": text, "pixels": pixels})


def clip(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    layers: int,
    text_width: int,
    text_layers: int,
    embed_dim: int,
    remat: str = "none",
) -> ConfigDict:
    """CLIP with a vision transformer; `remat` is what both towers recompute."""
    image = vit(image_size=image_size, patch_size=patch_size, width=width, layers=layers, remat=remat)
    return two_towers("clip", image, text(width=text_width, layers=text_layers, remat=remat), embed_dim)


def clip_resnet(
    *, image_size: int, width: int, layers: tuple[int, int, int, int], text_width: int, embed_dim: int
) -> ConfigDict:
    """CLIP with its ResNet and a text tower of twelve layers, both recomputed in the backward pass."""
    image = modified_resnet(image_size=image_size, width=width, layers=layers, remat="full")
    return two_towers("clip", image, text(width=text_width, layers=12, remat="full"), embed_dim)


def paper() -> ConfigDict:
    """What the paper's recipes share: length and data. `data.eval` is left to who runs them."""
    config = base()
    config.epochs = 32.0
    config.data.train = "tfds:coco_captions"
    return config


def paper_resnet(learning_rate: float, method: ConfigDict) -> ConfigDict:
    """`paper` with the optimizer of the ResNets (Radford et al. 2021, table 18 and 19)."""
    config = paper()
    config.optimizer.learning_rate = learning_rate
    config.optimizer.beta2 = 0.999
    config.optimizer.eps = 1e-8
    config.method = method
    return config


def evaluation(task: str, data: str, **keys: object) -> dict:
    """An entry of `evals`, with the task's own keys."""
    return {"task": task, "data": data, **keys}
