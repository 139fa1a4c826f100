"""CLIP ViT-B/16 as published (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs, AdamW.

Needs --config.data.vocabulary=PATH, OpenAI's bpe_simple_vocab_16e6.txt.gz. The data, by default tfds:coco_captions,
replace the unpublished set of 400 million pairs.
"""

from jaxclip import recipes


def get_config():
    config = recipes.paper()
    config.optimizer.learning_rate = 5e-4
    config.method = recipes.clip(
        image_size=224, patch_size=16, width=768, layers=12, text_width=512, text_layers=12, embed_dim=512
    )
    return config
