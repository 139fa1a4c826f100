"""SigLIP B/16 (Zhai et al. 2023): the sigmoid loss, attention pooling, non-causal texts of 64 tokens; batch 32,768.

Needs --config.data.vocabulary=PATH, the SentencePiece model of 32,000 tokens that SigLIP's weights come with, or
another with method.text.vocab_size. The data, by default tfds:coco_captions, replace the unpublished WebLI.
"""

from jaxclip import recipes


def get_config():
    config = recipes.base()
    config.steps = 274_658  # the 9 billion pairs of the paper's 5-day runs (section 4.3)
    config.data.train = "tfds:coco_captions"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.beta2 = 0.95
    # The paper's 1e-4 is not multiplied by the learning rate (big_vision's optimizer), but here it is.
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    image = recipes.vit(
        image_size=224, patch_size=16, width=768, layers=12, scan=False, activation="gelu_tanh", eps=1e-6
    )
    image |= {"pool": "map", "ln_pre": False, "patch_bias": True}
    text = recipes.text(width=768, layers=12, scan=False, activation="gelu_tanh", eps=1e-6)
    text |= {"vocab_size": 32_000, "context_length": 64, "causal": False, "pool": "last"}
    config.method = recipes.two_towers("siglip", image, text, 768)
    config.method.image_projection = False
    config.method.text_projection_bias = True
    config.method.pixels.mean = config.method.pixels.std = (0.5, 0.5, 0.5)
    config.method.pixels.resize = "squash"
    return config
