"""VirTex (Desai and Johnson 2021): a ResNet-50 that learns to caption in both directions; batch 256, 500,000 steps.

Needs --config.data.train=SOURCE, such as annotations/captions_train2017.json of COCO, and --config.data.eval=SOURCE.
--config.method.text.width and heads (width / 64), layers, and --config.method.pretext are what its tables compare.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.decoder import DecoderConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.overrides import IMAGENET


def get_config():
    config = recipes.base()
    config.batch_size = 256
    config.steps = 500_000
    config.eval_every = 2000
    config.checkpoint_every = 2000
    config.data.train_vocabulary = 10_000
    config.data.vocabulary_form = "sentencepiece"
    config.data.crop_scale = (0.2, 1.0)
    config.data.flip = True
    config.data.augment.update({"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_p": 0.8})
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 10.0
    config.optimizer.lookahead = (5, 0.5)
    # The backbone learns 200 times as fast as the rest. Its normalizations decay, and so do the biases of the maps from
    # the image and to the words.
    config.optimizer.groups = (
        {"match": "^image/", "decay_all": True},
        {"match": "^(output_bias|projection/bias|classifier/bias)$", "rate": 0.005, "decay_all": True},
        {"match": "", "rate": 0.005},
    )
    image = defaults(ResNetConfig) | {"image_size": 224, "layers": (3, 4, 6, 3), "zero_init": True}
    config.method = ConfigDict(
        {
            "name": "virtex",
            "image": image,
            "text": defaults(DecoderConfig) | {"width": 2048, "heads": 32},
            "pixels": defaults(PixelsConfig) | IMAGENET,
            "pretext": "bicaptioning",
            "mask_id": 3,
            "tags": 80,
        }
    )
    return config
