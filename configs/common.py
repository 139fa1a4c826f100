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
            },
            "evals": {},
        }
    )


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
    """CLIP with heads of width 64, OpenAI's vocabulary size and context; `remat` is what both towers recompute."""
    return ConfigDict(
        {
            "name": "clip",
            "embed_dim": embed_dim,
            "image": {
                "image_size": image_size,
                "patch_size": patch_size,
                "width": width,
                "layers": layers,
                "heads": width // 64,
                "scan": True,
                "remat": remat,
                "patch_drop": 0.0,
            },
            "text": {
                "vocab_size": 49_408,
                "context_length": 77,
                "width": text_width,
                "layers": text_layers,
                "heads": text_width // 64,
                "scan": True,
                "remat": remat,
            },
        }
    )


def paper() -> ConfigDict:
    """What the paper's recipes share: length and data. `data.eval` is left to who runs them."""
    config = base()
    config.epochs = 32.0
    config.data.train = "tfds:coco_captions"
    return config


def evaluation(task: str, data: str, *, classes: str = "", templates: tuple[str, ...] = ("a photo of a {c}.",)) -> dict:
    """An entry of `evals`."""
    return {"task": task, "data": data, "classes": classes, "templates": templates}
