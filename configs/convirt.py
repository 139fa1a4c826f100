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
    image = defaults(ResNetConfig) | {"image_size": 224, "layers": (3, 4, 6, 3)}
    text = defaults(BertConfig) | {"context_length": 128, "drop": 0.1, "pool": "max"}
    config = recipes.convirt(image, text, 512)
    config.batch_size = 32
    config.steps = 1_000_000  # The plateau ends it.
    config.eval_every = 5000
    config.checkpoint_every = 5000
    frozen = "^text/(token_embedding|positions|segments|ln_embedding|lower/)"
    config.optimizer.groups = ({"match": frozen, "rate": 0.0},)
    config.method.pixels.update(IMAGENET)
    return config
