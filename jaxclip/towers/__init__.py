"""Encoders of images (`vit`, `modified_resnet`, `resnet`) and of texts (`text`, `bert`), and their layers."""

from jaxclip.towers.bert import BertConfig as BertConfig
from jaxclip.towers.modified_resnet import ModifiedResNetConfig as ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig as ResNetConfig
from jaxclip.towers.text import TextConfig as TextConfig
from jaxclip.towers.text import TextTransformer as TextTransformer
from jaxclip.towers.vit import ViT as ViT
from jaxclip.towers.vit import ViTConfig as ViTConfig
