"""ALBEF (Li et al. 2021): ViT-B/16 and BERT-base on 4M or 14M images; batch 512, 30 epochs.

Needs --config.data.train=SOURCE, --config.data.eval=SOURCE and --config.data.vocabulary=FOLDER of bert-base-uncased; it
starts from --config.init_from='DEIT.safetensors + FOLDER'. --config.method.distillation_steps are those of an epoch.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.bert import BertConfig


def get_config():
    config = recipes.base()
    config.batch_size = 512
    config.epochs = 30.0
    config.checkpoint_every = 2000
    config.data.crop_scale = (0.2, 1.0)
    config.data.flip = True
    config.data.augment.rand_augment = (2, 7)
    config.data.clean = "albef"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.beta2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.02
    config.optimizer.schedule = {"name": "cosine", "end": 0.1}
    image = recipes.vit(image_size=256, patch_size=16, width=768, layers=12, patch_bias=True, ln_pre=False)
    config.method = ConfigDict(
        {
            "name": "albef",
            "image": image | {"activation": "gelu", "eps": 1e-6},
            "text": defaults(BertConfig) | {"context_length": 25, "drop": 0.1},
            "embed_dim": 256,
            "pixels": defaults(PixelsConfig),
            "mask_id": 103,
            "queue": 65_536,
            "momentum": 0.995,
            "temperature": 0.07,
            "distillation": 0.4,
            # An epoch of the paper's 14.1M images.
            "distillation_steps": 27_500,
            "teacher_dropout": False,
            # The paper's GPUs have 64 each.
            "negatives_among": 8,
            "positives": "pair",
        }
    )
    return config
