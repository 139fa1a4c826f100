"""Encoders: `vit.ViT` for pictures, `text.TextTransformer` for texts, and the `layers` they share."""

from jaxclip.towers.text import TextConfig as TextConfig
from jaxclip.towers.text import TextTransformer as TextTransformer
from jaxclip.towers.vit import ViT as ViT
from jaxclip.towers.vit import ViTConfig as ViTConfig
