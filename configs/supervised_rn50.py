"""A ResNet-50 that learns ImageNet's labels (He et al. 2016), the baseline of VirTex; batch 256, 90 epochs.

Needs --config.data.train=SOURCE with labels, such as 'tfds:imagenet2012[train]', of --config.method.classes classes.
The figures are those of torchvision's published weights (its references/classification), which VirTex compares with.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.overrides import IMAGENET


def get_config():
    config = recipes.base()
    config.batch_size = 256
    config.epochs = 90.0
    config.checkpoint_every = 5000
    config.data.crop_scale = (0.08, 1.0)
    config.data.flip = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.groups = ({"match": "", "decay_all": True},)
    config.optimizer.schedule = {"name": "stairs", "at": (1 / 3, 2 / 3), "factor": 0.1}
    image = defaults(ResNetConfig) | {"image_size": 224, "layers": (3, 4, 6, 3)}
    pixels = defaults(PixelsConfig) | IMAGENET
    config.method = ConfigDict({"name": "supervised", "image": image, "classes": 1000, "pixels": pixels})
    return config
