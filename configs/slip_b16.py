"""SLIP ViT-B/16 (Mu et al. 2022): CLIP's loss, and SimCLR's between two further views; batch 4096, 25 epochs.

Needs --config.data.train=SOURCE (the paper's is YFCC15M), --config.data.eval=SOURCE and --config.data.vocabulary=PATH.
"""

from jaxclip import recipes
from jaxclip.config import ViewConfig
from jaxclip.parsing import defaults


def get_config():
    config = recipes.base()
    config.batch_size = 4096
    config.epochs = 25.0
    config.data.crop_scale = (0.5, 1.0)
    config.data.views = {"ssl": defaults(ViewConfig)}
    config.data.views.ssl.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.1), "gray": 0.2, "blur": 0.5})
    config.data.augment_on_device = True
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.method = recipes.clip(
        image_size=224, patch_size=16, width=768, layers=12, text_width=512, text_layers=12, embed_dim=512
    )
    config.method.name = "slip"
    config.method.update({"ssl_hidden": 4096, "ssl_dim": 256, "ssl_weight": 1.0, "ssl_temperature": 0.1})
    return config
