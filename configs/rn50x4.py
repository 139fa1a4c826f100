"""CLIP RN50x4 as published (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs, AdamW.

Needs --config.data.vocabulary=PATH, OpenAI's bpe_simple_vocab_16e6.txt.gz. The data, by default tfds:coco_captions,
replace the unpublished set of 400 million pairs.
"""

from jaxclip import recipes


def get_config():
    method = recipes.clip_resnet(image_size=288, width=80, layers=(4, 6, 10, 6), text_width=640, embed_dim=640)
    return recipes.paper_resnet(5e-4, method)
