"""ConVIRT (Zhang et al. 2020): ResNet-50 and BERT-base on radiographs and random sentences of their reports; batch 32.

Needs --config.data.train=SOURCE, --config.data.eval=SOURCE, --config.data.vocabulary=PATH of BERT's vocab.txt, and
--config.init_from='resnet50.safetensors + BERT_FOLDER' (the paper's are ImageNet's and ClinicalBERT). BERT's embeddings
and its lower six blocks stay as they are.
"""

from jaxclip import recipes
from jaxclip.parsing import defaults
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.overrides import IMAGENET


def get_config():
    config = recipes.base()
    config.batch_size = 32
    config.steps = 1_000_000  # The plateau ends it.
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.keep_best = "validation_loss"
    config.data.captions = "sentence"
    config.data.crop_scale = (0.6, 1.0)
    config.data.flip = True
    augment = {"affine": (20.0, 0.1, 0.95, 1.05), "color_jitter": (0.4, 0.4, 0.0, 0.0), "color_jitter_p": 1.0}
    config.data.augment.update(augment | {"blur": 1.0, "blur_sigma": (0.1, 3.0)})
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 1e-6
    config.optimizer.beta2 = 0.999
    config.optimizer.eps = 1e-8
    plateau = {"metric": "validation_loss", "patience": 5, "factor": 0.5, "stop": 10}
    config.optimizer.schedule = {"name": "plateau", **plateau}
    frozen = "^text/(token_embedding|positions|segments|ln_embedding|lower/)"
    config.optimizer.groups = ({"match": frozen, "rate": 0.0},)
    image = defaults(ResNetConfig) | {"image_size": 224, "layers": (3, 4, 6, 3)}
    text = defaults(BertConfig) | {"context_length": 128, "drop": 0.1, "pool": "max"}
    config.method = recipes.two_towers("convirt", image, text, 512)
    for key in ("image_projection", "image_projection_bias", "text_projection_bias"):
        del config.method[key]
    config.method.update({"head": "mlp", "image_weight": 0.75, "temperature": 0.1, "learn_temperature": False})
    config.method.pixels.update(IMAGENET)
    return config
