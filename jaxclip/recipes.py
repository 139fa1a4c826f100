"""What recipes are made of, from `jaxclip.config` and the towers: each key has the default that it has there."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxclip.config import Config, PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig


def base() -> ConfigDict:
    """Every key that is not a method's own, so that each can be given on the command line.

    What has no default in `jaxclip.config` has CLIP's (Radford et al. 2021, table 18), but for the data and the length,
    which a recipe has to say.
    """
    config = ConfigDict(defaults(Config) | {"seed": 0, "steps": 0, "batch_size": 32_768})
    config.data.train = ""
    config.optimizer.learning_rate = 5e-4
    return config


def vit(*, image_size: int, patch_size: int, width: int, layers: int, **keys: Any) -> dict[str, Any]:
    """CLIP's vision transformer, with heads of width 64; `keys` are further ones of `ViTConfig`."""
    size = {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers, "heads": width // 64}
    return defaults(ViTConfig) | size | keys


def modified_resnet(*, image_size: int, width: int, layers: tuple[int, int, int, int], **keys: Any) -> dict[str, Any]:
    """CLIP's ResNet; `keys` are further ones of `ModifiedResNetConfig`."""
    return defaults(ModifiedResNetConfig) | {"image_size": image_size, "width": width, "layers": layers} | keys


def text(*, width: int, layers: int, **keys: Any) -> dict[str, Any]:
    """CLIP's text transformer with heads of width 64, OpenAI's vocabulary size and context.

    `keys` are further ones of `TextConfig`.
    """
    size = {"vocab_size": 49_408, "context_length": 77, "width": width, "layers": layers, "heads": width // 64}
    return defaults(TextConfig) | size | keys


def two_towers(name: str, image: dict[str, Any], text: dict[str, Any], embed_dim: int) -> ConfigDict:
    """A method of two towers with CLIP's preprocessing."""
    pixels = defaults(PixelsConfig)
    projections = {"image_projection": True, "image_projection_bias": False, "text_projection_bias": False}
    towers = {"embed_dim": embed_dim, "image": image, "text": text}
    return ConfigDict({"name": name, **towers, "pixels": pixels, **projections})


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
    """CLIP with a vision transformer; `remat` is what both towers recompute.

    The layers are unrolled: a scan compiles faster, but an accelerator takes half as long again for a step.
    """
    keys = {"scan": False, "remat": remat}
    image = vit(image_size=image_size, patch_size=patch_size, width=width, layers=layers, **keys)
    return two_towers("clip", image, text(width=text_width, layers=text_layers, **keys), embed_dim)


def clip_resnet(
    *, image_size: int, width: int, layers: tuple[int, int, int, int], text_width: int, embed_dim: int
) -> ConfigDict:
    """CLIP with its ResNet and a text tower of twelve layers, both recomputed in the backward pass."""
    image = modified_resnet(image_size=image_size, width=width, layers=layers, remat="full")
    method = two_towers("clip", image, text(width=text_width, layers=12, scan=False, remat="full"), embed_dim)
    method.image_projection_bias = True
    return method


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


def convirt(image: dict[str, Any], text: dict[str, Any], embed_dim: int) -> ConfigDict:
    """What ConVIRT's recipes share (Zhang et al. 2020, section 2.2 and appendix): sentences, augmentation, loss, Adam.

    The rate falls, and the run ends, by the validation loss. `data.train`, `data.eval` and a vocabulary are left out.
    """
    config = base()
    config.keep_best = "validation_loss"
    config.data.captions = "sentence"
    config.data.crop_scale = (0.6, 1.0)
    config.data.flip = True
    augment = {"affine": (20.0, 0.1, 0.95, 1.05), "color_jitter": (0.4, 0.4, 0.0, 0.0), "color_jitter_p": 1.0}
    config.data.augment.update(augment | {"blur": 1.0, "blur_sigma": (0.1, 3.0)})
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 1e-6
    config.optimizer.beta2 = 0.999
    config.optimizer.eps = 1e-8
    plateau = {"metric": "validation_loss", "patience": 5, "factor": 0.5, "stop": 10}
    config.optimizer.schedule = {"name": "plateau", **plateau}
    config.method = two_towers("convirt", image, text, embed_dim)
    for key in ("image_projection", "image_projection_bias", "text_projection_bias"):
        del config.method[key]
    config.method.update({"head": "mlp", "image_weight": 0.75, "temperature": 0.1, "learn_temperature": False})
    return config


def albef(*, image_size: int, context_length: int) -> dict[str, Any]:
    """The towers and the preprocessing of ALBEF (Li et al. 2021, section 3.1): ViT-B/16 and BERT-base."""
    image = vit(image_size=image_size, patch_size=16, width=768, layers=12, patch_bias=True, ln_pre=False)
    text = defaults(BertConfig) | {"context_length": context_length, "drop": 0.1}
    return {"image": image | {"activation": "gelu", "eps": 1e-6}, "text": text, "pixels": defaults(PixelsConfig)}


def albef_base(learning_rate: float, last: float) -> ConfigDict:
    """What ALBEF's recipes share: augmentation, caption cleaning, AdamW (Li et al. 2021, section 3.5).

    `data.train`, `data.eval` and `data.vocabulary` are left to who runs them.

    Args:
      learning_rate: at its highest.
      last: the learning rate at the end.
    """
    config = base()
    config.checkpoint_every = 2000
    config.data.flip = True
    config.data.augment.rand_augment = (2, 7)
    config.data.clean = "albef"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = 1000
    config.optimizer.beta2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.02
    config.optimizer.schedule = {"name": "cosine", "end": last / learning_rate}
    return config


def albef_fine_tuning(learning_rate: float, *, batch_size: int, epochs: float, init_only: str) -> ConfigDict:
    """What its fine-tuning shares (appendix A): larger crops, each caption or question of an image in turn.

    Args:
      learning_rate: at its highest; 1e-6 at the end.
      batch_size, epochs: of images.
      init_only: what is taken from the weights of `config.init_from`.
    """
    config = albef_base(learning_rate, 1e-6)
    config.batch_size = batch_size
    config.epochs = epochs
    config.init_only = init_only
    config.data.crop_scale = (0.5, 1.0)
    config.data.captions = "all"
    return config


def evaluation(task: str, data: str, **keys: Any) -> dict[str, Any]:
    """An entry of `evals`, with the task's own keys."""
    return {"task": task, "data": data, **keys}


def layer_decay(tower: str, decay: float, layers: int) -> tuple[dict[str, Any], ...]:
    """The `optimizer.groups` that train the lower layers of a transformer at a lower rate.

    As in BEiT (Bao et al. 2022) and MAE (He et al. 2022): the rate is multiplied by decay ** (layers + 1 - id), where
    the embedding has id 0, the blocks 1 to `layers`, and what is behind them layers + 1.

    Args:
      tower: where its parameters are, such as "image" or "text".
      decay: the factor from one layer to the one below it.
      layers: how many blocks it has, in one stack; a BERT has two, and its groups are written by hand.
    """
    embedding = r"(patch_|class_embedding|token_embedding|positions|segments|ln_pre|ln_embedding)"
    return (
        {"match": f"^{tower}/{embedding}", "rate": decay ** (layers + 1)},
        {"match": f"^{tower}/.*blocks/", "rate": decay, "layer_decay": decay},
    )
