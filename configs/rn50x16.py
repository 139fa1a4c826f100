"""CLIP RN50x16 as published (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs, AdamW.

Needs --config.data.vocabulary=PATH, OpenAI's bpe_simple_vocab_16e6.txt.gz. The data, by default tfds:coco_captions,
replace the unpublished set of 400 million pairs.
"""

from jaxclip import recipes


def get_config():
    method = recipes.clip_resnet(image_size=384, width=96, layers=(6, 8, 18, 8), text_width=768, embed_dim=768)
    return recipes.paper_resnet(4e-4, method)
