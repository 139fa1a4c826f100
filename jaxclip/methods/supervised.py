"""Supervised classification of images (ResNet, He et al. 2016), the baseline of methods that learn without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least
from jaxclip.context import Context
from jaxclip.inputs import Image, Inputs, Label
from jaxclip.towers.backbone import Backbone
from jaxclip.towers.layers import Linear, normal, zeros
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.vit import ViTConfig


class Classifier(Backbone):
    """An image tower and a linear map from its pooled features to a score of each class."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.pixels, rngs=rngs)
        self.classifier = Linear(method.image.output_width, method.classes, kernel=normal(0.01), bias=zeros, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """The keys of supervised classification in a config.

    Attributes:
      image: the tower.
      classes: how many there are; a label outside of them, or none, does not count.
      pixels: preprocessing.
    """

    image: ResNetConfig | ModifiedResNetConfig | ViTConfig
    classes: int
    pixels: PixelsConfig = PixelsConfig()

    task: ClassVar[str] = ""
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"Top-1 accuracy": ("accuracy",)}

    def __post_init__(self):
        check_at_least(self, 2, "classes")

    def inputs(self) -> Inputs:
        """One image and its class."""
        return {"image": Image(self.image.image_size, self.pixels), "label": Label()}

    def init(self, rngs: nnx.Rngs) -> Classifier:
        """The model, freshly initialized."""
        return Classifier(self, rngs=rngs)

    def loss(
        self, model: Classifier, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean cross-entropy of the labeled images."""
        scores, labels = ctx.each(_scores, batch["image"]), batch["label"]
        known = ((labels >= 0) & (labels < self.classes)).astype(jnp.float32)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None] % self.classes, axis=1)[:, 0]
        right = (jnp.argmax(scores, axis=1) == labels).astype(jnp.float32)
        count = jnp.maximum(jnp.sum(known), 1)
        return jnp.sum(losses * known) / count, {"accuracy": jnp.sum(right * known) / count}


def _scores(model: Classifier, images: Array, ctx: Context) -> Float[Array, "batch classes"]:
    return model.classifier(model.features(images, ctx)).astype(jnp.float32)
