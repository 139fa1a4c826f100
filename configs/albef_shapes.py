"""Toy of ALBEF: pairs of procedural scenes of colored shapes with captions, from scratch; minutes on two CPU cores."""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.bert import BertConfig


def get_config():
    config = recipes.base()
    config.batch_size = 64
    config.steps = 1200
    config.log_every = 20
    config.eval_every = 400
    config.checkpoint_every = 200
    config.data.train = "shapes"
    config.data.eval = "shapes:validation"
    config.data.train_vocabulary = 200
    config.data.vocabulary_form = "sentencepiece"
    config.data.crop_scale = (0.8, 1.0)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 2e-2
    config.optimizer.clip_norm = 1.0
    # Adam moves a parameter by about the learning rate in a step, which is too much for a temperature.
    config.optimizer.groups = ({"match": "^temperature$", "rate": 0.02},)
    image = recipes.vit(image_size=48, patch_size=8, width=128, layers=4, scan=False, patch_bias=True, ln_pre=False)
    text = defaults(BertConfig) | {"vocab_size": 200, "context_length": 24, "width": 128, "heads": 2, "layers": 4}
    text |= {"scan": False, "stddev": 0.05}
    config.method = ConfigDict(
        {
            "name": "albef",
            "image": image | {"activation": "gelu"},
            "text": text,
            "embed_dim": 64,
            "pixels": defaults(PixelsConfig),
            "mask_id": 3,
            "queue": 1024,
            "momentum": 0.99,
            "temperature": 0.07,
            "distillation": 0.4,
            # The copy of a model that knows nothing has nothing to teach.
            "distillation_steps": 1200,
            "teacher_dropout": False,
            "negatives_among": 16,
            "positives": "pair",
        }
    )
    # Scenes that are described alike are answers to each other's captions.
    retrieval = recipes.evaluation("two_stage_retrieval", "shapes:test", k=32, equal_captions=True)
    config.evals = {"scenes": retrieval}
    return config
