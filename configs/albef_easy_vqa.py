"""Toy of visual question answering with ALBEF's towers: easy-VQA's questions about one drawn shape, on CPU cores.

--config.data.root=FOLDER names the folder with train-00000.tar and test-00000.tar. The image tower may start from a run
of configs/albef_shapes.py: --config.init_from=RUN --config.init_only='^image/'.
"""

from ml_collections import ConfigDict

from jaxclip import recipes
from jaxclip.config import PixelsConfig
from jaxclip.parsing import defaults
from jaxclip.towers.bert import BertConfig


def get_config():
    config = recipes.base()
    config.batch_size = 64
    config.steps = 6000
    config.log_every = 20
    config.eval_every = 2000
    config.checkpoint_every = 200
    config.data.train = "train-00000.tar"
    config.data.train_vocabulary = 150
    config.data.vocabulary_form = "sentencepiece"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 2e-2
    config.optimizer.clip_norm = 1.0
    image = recipes.vit(image_size=64, patch_size=8, width=128, layers=4, scan=False, patch_bias=True, ln_pre=False)
    text = defaults(BertConfig) | {"vocab_size": 150, "context_length": 20, "width": 128, "heads": 2, "layers": 4}
    text |= {"scan": False, "stddev": 0.05}
    config.method = ConfigDict(
        {
            "name": "albef_vqa",
            "image": image | {"activation": "gelu"},
            "text": text,
            "pixels": defaults(PixelsConfig),
            "answer_length": 5,
            "answers": 1,
            "momentum": 0.995,
            # There is no pretrained copy to learn from.
            "distillation": 0.0,
            "distillation_steps": 0,
        }
    )
    config.evals = {
        "easy_vqa": recipes.evaluation("question_answering", "test-00000.tar", train="train-00000.tar", k=13)
    }
    return config
