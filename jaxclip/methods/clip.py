"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs, Text
from jaxclip.losses.contrastive import softmax_contrastive
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.layers import normalized_pixels, unit
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig

MAX_LOGIT_SCALE = math.log(100.0)


class CLIP(nnx.Module):
    """Two towers and a temperature."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        self.pixels = method.pixels
        self.image = method.image.init(method.embed_dim, rngs=rngs)
        self.text = method.text.init(method.embed_dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(self, images: UInt8[Array, "batch height width 3"], ctx: Context) -> Float[Array, "batch embed"]:
        """Unit embeddings of 8-bit RGB images, float32."""
        pixels = normalized_pixels(images, self.pixels.mean, self.pixels.std, ctx.dtype)
        return unit(self.image(pixels, train=ctx.train, drop_keys=ctx.keys, constrain=ctx.constrain))

    def encode_text(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context
    ) -> Float[Array, "batch embed"]:
        """Unit embeddings of token ids, float32; `end` is the position of each text's end token."""
        return unit(self.text(tokens, end, dtype=ctx.dtype, constrain=ctx.constrain))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Logits of pairs are scale * cosine + bias."""
        return jnp.exp(self.logit_scale[...]), jnp.zeros((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """CLIP's keys in a config.

    Attributes:
      image: the image tower; its `name` says which, the vision transformer if it has none.
      text: the text tower, likewise; CLIP's transformer if it has no `name`.
      embed_dim: width of the shared space.
      pixels: image preprocessing.
    """

    image: ViTConfig | ModifiedResNetConfig | ResNetConfig
    text: TextConfig | BertConfig
    embed_dim: int
    pixels: PixelsConfig = PixelsConfig()

    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"In-batch accuracy": ("batch_accuracy",)}

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim")
        if isinstance(self.image, ViTConfig) and not self.image.projection and self.embed_dim != self.image.width:
            raise UserError(f"embed_dim={self.embed_dim} must be image.width={self.image.width}: no image.projection")

    def inputs(self) -> Inputs:
        """One image and one caption."""
        return {"image": Image(self.image.image_size, self.pixels), "text": Text(self.text.context_length)}

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the vocabulary has more tokens than the text tower."""
        methods.check_vocabulary(tokenizer, self.text.vocab_size)

    def init(self, rngs: nnx.Rngs) -> CLIP:
        """The model, freshly initialized."""
        return CLIP(self, rngs=rngs)

    def loss(
        self, model: CLIP, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The symmetric loss over the global batch (figure 3)."""
        images, texts = ctx.each(embed, batch)
        scale, _ = model.scale_and_bias()
        loss, accuracy = softmax_contrastive(images, texts, scale, mesh=ctx.mesh)
        return loss, {"batch_accuracy": accuracy, "logit_scale": scale}

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """Clamps `logit_scale` to log(100), which is a temperature of at least 0.01 (section 2.5)."""
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}


def embed(
    model: CLIP, batch: Mapping[str, Array], ctx: Context
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """Unit embeddings of images and of texts, rounded to `ctx.dtype` as the towers' own values are."""
    images = model.encode_image(batch["image"], ctx)
    texts = model.encode_text(batch["text"], batch["text_end"], ctx)
    return images.astype(ctx.dtype), texts.astype(ctx.dtype)
