"""LiT: a text tower trained against a frozen image tower (Zhai et al. 2022, Locked-image text tuning).

Needs --config.init_from=WEIGHTS, of which only the image tower is used, and --config.data.vocabulary=PATH. By default
the image tower is OpenAI's ViT-B/16; for another, set its sizes in config.method.image. Batch size, length, context
length, learning rate, clipping and data are those of big_vision's lit_coco.py.
"""

from jaxclip import recipes


def get_config():
    config = recipes.base()
    config.batch_size = 4096
    config.steps = 5000
    config.eval_every = 1000
    config.init_only = "^image"
    config.data.train = "tfds:coco_captions"
    config.data.flip = True
    config.optimizer.groups = ({"match": "^image", "rate": 0.0},)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 150
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.method = recipes.clip(
        image_size=224, patch_size=16, width=768, layers=12, text_width=768, text_layers=12, embed_dim=512
    )
    config.method.text.context_length = 16
    return config
