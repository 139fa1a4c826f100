"""Toy of VirTex: captions of procedural scenes of colored shapes, from scratch; some six minutes on two CPU cores.

--config.method.pretext=captioning, masked_lm or token_classification learns from the same captions in another way.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.decoder import DecoderConfig
from jaxclip.towers.resnet import ResNetConfig


def get_config():
    config = recipes.base()
    config.batch_size = 64
    config.steps = 1000
    config.log_every = 20
    config.eval_every = 500
    config.checkpoint_every = 200
    config.data.train = "shapes"
    config.data.eval = "shapes:seen"
    config.data.train_vocabulary = 200
    config.data.vocabulary_form = "sentencepiece"
    config.data.crop_scale = (0.8, 1.0)
    config.data.flip = True
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 10.0
    image = defaults(ResNetConfig) | {"image_size": 48, "layers": (1, 1, 1, 1), "width": 16}
    text = {"vocab_size": 200, "context_length": 24, "width": 128, "heads": 2, "scan": False}
    # A narrow model learns sooner with normalization before the branches and a larger initialization.
    text |= {"norm": "pre", "init": 0.09, "drop": 0.0}
    config.method = ConfigDict(
        {
            "name": "virtex",
            "image": image,
            "text": defaults(DecoderConfig) | text,
            "pixels": defaults(PixelsConfig),
            "pretext": "bicaptioning",
            "mask_id": 3,
            "tags": 80,
        }
    )
    return config
