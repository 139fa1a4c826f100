"""CLIP ViT-L/14@336px with its published figures (Radford et al. 2021, section 2.5): one epoch at 336 pixels.

The published model is a trained ViT-L/14, trained further at 336 pixels: --config.init_from=PATH, a run's workdir or
public weights, whose position embeddings are resized. Needs --config.data.vocabulary=PATH, OpenAI's
bpe_simple_vocab_16e6.txt.gz.
"""

from jaxclip import recipes


def get_config():
    config = recipes.paper()
    config.epochs = 1.0
    config.optimizer.learning_rate = 2e-5
    # Without this, a batch of 32,768 does not fit on 256 chips of 16 GiB: see docs/plan.md.
    config.method = recipes.clip(
        image_size=336,
        patch_size=14,
        width=1024,
        layers=24,
        text_width=768,
        text_layers=12,
        embed_dim=768,
        remat="full",
    )
    return config
