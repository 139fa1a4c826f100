"""ConVIRT: Contrastive Learning of Medical Visual Representations from Paired Images and Text (Zhang et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Inputs
from jaxclip.losses.contrastive import softmax_contrastive
from jaxclip.methods import clip
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.layers import TwoLayers
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig


class ConVIRT(clip.CLIP):
    """CLIP's towers with heads of their own and, unless it is learned, a fixed temperature."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.plain, rngs=rngs)
        if method.head == "mlp":
            self.image_projection = TwoLayers(method.image.output_width, method.embed_dim, rngs=rngs)
            self.text_projection = TwoLayers(method.text.output_width, method.embed_dim, rngs=rngs)
        self.fixed_scale = None if method.learn_temperature else 1 / method.temperature
        if method.learn_temperature:
            self.logit_scale = nnx.Param(-jnp.log(jnp.asarray(method.temperature, jnp.float32)))
        else:
            del self.logit_scale

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Logits of pairs are scale * cosine + bias."""
        zero = jnp.zeros((), jnp.float32)
        if self.fixed_scale is not None:
            return zero + self.fixed_scale, zero
        return jnp.exp(self.logit_scale[...]), zero


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """ConVIRT's keys in a config.

    Attributes:
      image, text, pixels: as of CLIP.
      embed_dim: width of the shared space.
      head: "mlp" for heads of two layers (equations 1 and 2); "linear" for CLIP's projections.
      image_weight: lambda, the weight of classifying images among texts; the other direction has the rest (equation 4).
      temperature: cosines are divided by it.
      learn_temperature: whether it is only the beginning, as in CLIP.
    """

    image: ResNetConfig | ModifiedResNetConfig | ViTConfig
    text: BertConfig | TextConfig
    embed_dim: int = 512
    pixels: PixelsConfig = PixelsConfig()
    head: Literal["mlp", "linear"] = "mlp"
    image_weight: float = 0.75
    temperature: float = 0.1
    learn_temperature: bool = False

    charts: ClassVar[Mapping[str, tuple[str, ...]]] = clip.Method.charts

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim")
        if not 0 <= self.image_weight <= 1:
            raise UserError(f"image_weight={self.image_weight} must be at least 0 and at most 1")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0")

    @property
    def plain(self) -> clip.Method:
        """CLIP with the same towers."""
        return clip.Method(self.image, self.text, self.embed_dim, self.pixels)

    def inputs(self) -> Inputs:
        """One image and one caption: with `data.captions="sentence"`, a random sentence (section 2.2)."""
        return self.plain.inputs()

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the vocabulary has more tokens than the text tower."""
        self.plain.check(tokenizer)

    def init(self, rngs: nnx.Rngs) -> ConVIRT:
        """The model, freshly initialized."""
        return ConVIRT(self, rngs=rngs)

    def loss(
        self, model: ConVIRT, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The weighted loss of both directions over the global batch (equation 4)."""
        images, texts = ctx.each(clip.embed, batch)
        scale, _ = model.scale_and_bias()
        loss, accuracy = softmax_contrastive(images, texts, scale, image_weight=self.image_weight, mesh=ctx.mesh)
        return loss, {"batch_accuracy": accuracy, "logit_scale": scale} | clip.spreads(images, texts)

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """A learned temperature within CLIP's bounds."""
        return self.plain.clamp(params) if self.learn_temperature else params
