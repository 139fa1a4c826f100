"""Toy of MoCo v2: CIFAR-10 without its labels, from scratch, measured by nearest neighbors; minutes on two CPU cores.

--config.data.root=FOLDER names the folder with train-*.tar and val-00000.tar.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig, ViewConfig
from jaxclip.parsing import defaults
from jaxclip.towers.resnet import ResNetConfig


def get_config():
    config = recipes.base()
    config.batch_size = 64
    config.steps = 1600
    config.log_every = 20
    config.eval_every = 400
    config.checkpoint_every = 200
    config.data.train = "train-*.tar"
    config.data.views = {"moco": defaults(ViewConfig)}
    config.data.views.moco.crop_scale = (0.2, 1.0)
    # Images of 32 pixels are not blurred.
    config.data.views.moco.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.1), "gray": 0.2})
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-2
    image = defaults(ResNetConfig) | {"image_size": 48, "layers": (1, 1, 1, 1), "width": 16, "norm_groups": 4}
    config.method = ConfigDict(
        {
            "name": "moco",
            "image": image,
            "pixels": defaults(PixelsConfig),
            "embed_dim": 64,
            "queue": 2048,
            # A short run has no time for a slow copy.
            "momentum": 0.99,
            "temperature": 0.1,
        }
    )
    config.evals = {"cifar10": recipes.evaluation("nearest_neighbors", "val-00000.tar", train="train-*.tar")}
    return config
