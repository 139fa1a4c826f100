"""CLIP ViT-L/14 as published (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs, AdamW.

Needs --config.data.vocabulary=PATH, OpenAI's bpe_simple_vocab_16e6.txt.gz. The data, by default tfds:coco_captions,
replace the unpublished set of 400 million pairs.
"""

from jaxclip import recipes


def get_config():
    config = recipes.paper()
    config.optimizer.learning_rate = 4e-4
    config.method = recipes.clip(
        image_size=224,
        patch_size=14,
        width=1024,
        layers=24,
        text_width=768,
        text_layers=12,
        embed_dim=768,
    )
    return config
