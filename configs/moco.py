"""MoCo v2 (Chen et al. 2020): a ResNet-50 that learns without labels; batch 256, 200 epochs.

Needs --config.data.train=SOURCE: the paper's is ImageNet-1k, that of VirTex's comparison COCO train2017.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig, ViewConfig
from jaxclip.parsing import defaults
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.overrides import IMAGENET


def get_config():
    config = recipes.base()
    config.batch_size = 256
    config.epochs = 200.0
    config.checkpoint_every = 5000
    config.data.views = {"moco": defaults(ViewConfig)}
    config.data.views.moco.crop_scale = (0.2, 1.0)
    config.data.views.moco.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_p": 0.8, "gray": 0.2})
    config.data.views.moco.augment.update({"blur": 0.5, "blur_sigma": (0.1, 2.0)})
    config.data.augment_on_device = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 1e-4
    # All parameters decay, as in the reference (facebookresearch/moco, main_moco.py).
    config.optimizer.groups = ({"match": "", "decay_all": True},)
    # The paper's eight GPUs have 32 images each, and their own batch statistics.
    image = defaults(ResNetConfig) | {"image_size": 224, "layers": (3, 4, 6, 3), "norm_groups": 8}
    config.method = ConfigDict(
        {
            "name": "moco",
            "image": image,
            "pixels": defaults(PixelsConfig) | IMAGENET,
            "embed_dim": 128,
            "queue": 65_536,
            "momentum": 0.999,
            "temperature": 0.2,
        }
    )
    return config
