"""ALBEF (Li et al. 2021): ViT-B/16 and BERT-base on 4M or 14M images; batch 512, 30 epochs.

Needs --config.data.train=SOURCE, --config.data.eval=SOURCE and --config.data.vocabulary=FOLDER of bert-base-uncased; it
starts from --config.init_from='DEIT.safetensors + FOLDER'. --config.method.distillation_steps are those of an epoch.
"""

from ml_collections import ConfigDict

from jaxclip import recipes


def get_config():
    config = recipes.albef_base(1e-4, 1e-5)
    config.batch_size = 512
    config.epochs = 30.0
    config.data.crop_scale = (0.2, 1.0)
    config.method = ConfigDict(
        {
            "name": "albef",
            **recipes.albef(image_size=256, context_length=30),
            "embed_dim": 256,
            "mask_id": 103,
            "queue": 65_536,
            "momentum": 0.995,
            "temperature": 0.07,
            "distillation": 0.4,
            # An epoch of the paper's 14.1M images.
            "distillation_steps": 27_500,
            "teacher_dropout": False,
            # In the paper the 64 of a GPU. With 8, the groups of 64 chips lie on one each.
            "negatives_among": 8,
            "positives": "pair",
        }
    )
    return config
