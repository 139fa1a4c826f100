"""Demo of ConVIRT: a small ResNet and a small BERT on procedural scenes; ten minutes on two CPU cores.

The augmentation is ConVIRT's but for what the captions name: smaller changes of brightness and contrast, larger crops.
"""

from jaxclip import recipes
from jaxclip.parsing import defaults
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.resnet import ResNetConfig


def get_config():
    image = defaults(ResNetConfig) | {"image_size": 32, "layers": (1, 1, 1, 1), "width": 24}
    size = {"vocab_size": 800, "context_length": 20, "width": 128, "layers": 2, "heads": 2, "scan": False}
    text = defaults(BertConfig) | size | {"drop": 0.1, "pool": "max"}
    config = recipes.convirt(image, text, 128)
    config.batch_size = 128
    config.steps = 900
    config.log_every = 10
    config.eval_every = 150
    config.checkpoint_every = 150
    config.data.train = "shapes"
    config.data.eval = "shapes:validation"
    config.data.train_vocabulary = 800
    config.data.crop_scale = (0.8, 1.0)
    config.data.augment.color_jitter = (0.1, 0.1, 0.0, 0.0)
    config.data.augment.blur_sigma = (0.1, 0.5)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule.update(patience=1, stop=4)
    templates = ("a {c}", "there is a {c}", "{c}")
    config.evals = {
        name: recipes.evaluation("zeroshot_classification", data, templates=templates)
        for name, data in (("shapes_seen", "shapes:seen"), ("shapes_unseen", "shapes:unseen"))
    }
    config.evals.update(same_class=recipes.evaluation("class_precision", "shapes:seen", image_queries="shapes:seen"))
    return config
