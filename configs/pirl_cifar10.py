"""Toy of PIRL: CIFAR-10 without its labels, from scratch, measured by nearest neighbors; minutes on two CPU cores.

--config.data.root=FOLDER names the folder with train-*.tar and val-00000.tar; --config.method.records of other data.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig, ViewConfig
from jaxclip.parsing import defaults
from jaxclip.towers.resnet import ResNetConfig


def get_config():
    config = recipes.base()
    config.batch_size = 128
    config.steps = 800
    config.log_every = 20
    config.eval_every = 400
    config.checkpoint_every = 200
    config.data.train = "train-*.tar"
    config.data.views = {"image": defaults(ViewConfig), "jigsaw": defaults(ViewConfig)}
    config.data.views.image.crop_scale = (0.2, 1.0)
    config.data.views.jigsaw.crop_scale = (0.6, 1.0)
    for view in config.data.views.values():
        view.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.1), "gray": 0.2})
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-2
    image = defaults(ResNetConfig) | {"image_size": 48, "layers": (1, 1, 1, 1), "width": 16}
    config.method = ConfigDict(
        {
            "name": "pirl",
            "image": image,
            "records": 20_000,
            "pixels": defaults(PixelsConfig),
            "embed_dim": 64,
            "jigsaw_size": 60,
            "patch_size": 16,
            "negatives": 2048,
            "temperature": 0.1,
            "bank_momentum": 0.5,
            "patches_weight": 0.5,
        }
    )
    config.evals = {"cifar10": recipes.evaluation("nearest_neighbors", "val-00000.tar", train="train-*.tar")}
    return config
