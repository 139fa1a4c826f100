"""CLIP RN50x64 as published (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs, AdamW.

Needs --config.data.vocabulary=PATH, OpenAI's bpe_simple_vocab_16e6.txt.gz. The data, by default tfds:coco_captions,
replace the unpublished set of 400 million pairs.
"""

from jaxclip import recipes


def get_config():
    method = recipes.clip_resnet(image_size=448, width=128, layers=(3, 15, 36, 10), text_width=1024, embed_dim=1024)
    return recipes.paper_resnet(3.6e-4, method)
