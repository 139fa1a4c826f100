"""PIRL (Misra and van der Maaten 2020): a ResNet-50 that learns without labels from jigsaws; batch 1024, 800 epochs.

Needs --config.data.train=SOURCE, and --config.method.records if it is not ImageNet-1k.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig, ViewConfig
from jaxclip.parsing import defaults
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.overrides import IMAGENET


def get_config():
    config = recipes.base()
    config.batch_size = 1024
    config.epochs = 800.0
    config.checkpoint_every = 5000
    # Figures that the paper leaves out are those of facebookresearch/vissl, pretrain/pirl/pirl_jigsaw_4node_resnet50.
    config.data.views = {"image": defaults(ViewConfig), "jigsaw": defaults(ViewConfig)}
    config.data.views.jigsaw.crop_scale = (0.6, 1.0)
    for view in config.data.views.values():
        view.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.2), "color_jitter_p": 1.0, "gray": 0.2})
    config.data.augment_on_device = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.12
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = {"name": "cosine", "end": 0.001}
    image = defaults(ResNetConfig) | {"image_size": 224, "layers": (3, 4, 6, 3)}
    config.method = ConfigDict(
        {
            "name": "pirl",
            "image": image,
            "records": 1_281_167,
            "pixels": defaults(PixelsConfig) | IMAGENET,
            "embed_dim": 128,
            "jigsaw_size": 255,
            "patch_size": 64,
            "negatives": 32_000,
            "temperature": 0.07,
            "bank_momentum": 0.5,
            "patches_weight": 0.5,
        }
    )
    return config
