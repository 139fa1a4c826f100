"""CLIP ViT-L/14@336px with its published figures (Radford et al. 2021, section 2.5): one epoch at 336 pixels.

The published model is a trained ViT-L/14 that goes on at 336 pixels: --config.init_from=PATH, a run's workdir or public
weights, whose position embeddings are resized. Needs --config.data.vocabulary=PATH, OpenAI's
bpe_simple_vocab_16e6.txt.gz.
"""

from configs import vit_l14


def get_config():
    config = vit_l14.get_config()
    config.epochs = 1.0
    config.optimizer.learning_rate = 2e-5
    config.method.image.image_size = 336
    return config
