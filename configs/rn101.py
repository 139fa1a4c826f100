"""CLIP RN101 as published (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs, AdamW.

Needs --config.data.vocabulary=PATH, OpenAI's bpe_simple_vocab_16e6.txt.gz. The data, by default tfds:coco_captions,
replace the unpublished set of 400 million pairs.
"""

from jaxclip import recipes


def get_config():
    method = recipes.clip_resnet(image_size=224, width=64, layers=(3, 4, 23, 3), text_width=512, embed_dim=512)
    return recipes.paper_resnet(5e-4, method)
