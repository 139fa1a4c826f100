"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
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
from jaxclip.towers.layers import Linear, normal, normalized_pixels, uniform, unit, zeros
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig

MAX_LOGIT_SCALE = math.log(100.0)


class CLIP(nnx.Module):
    """Two towers, their projections to the shared space, and a temperature."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        self.pixels = method.pixels
        self.projects_images = method.image_projection
        self.image = method.image.init(rngs=rngs)
        if method.image_projection:
            self.image_projection = Linear(
                method.image.output_width,
                method.embed_dim,
                kernel=normal(method.image.output_width**-0.5),
                bias=uniform(method.image.output_width**-0.5) if method.image_projection_bias else None,
                rngs=rngs,
            )
        self.text = method.text.init(rngs=rngs)
        self.text_projection = Linear(
            method.text.output_width,
            method.embed_dim,
            kernel=normal(method.text.output_width**-0.5),
            bias=zeros if method.text_projection_bias else None,
            rngs=rngs,
        )
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(self, images: UInt8[Array, "batch height width 3"], ctx: Context) -> Float[Array, "batch embed"]:
        """Unit embeddings of 8-bit RGB images, float32."""
        pooled = self.features(images, ctx)
        return unit(self.image_projection(pooled) if self.projects_images else pooled)

    def features(self, images: UInt8[Array, "batch height width 3"], ctx: Context) -> Float[Array, "batch channels"]:
        """The image tower's pooled vectors of 8-bit RGB images, before the projection, in `ctx.dtype`."""
        return self.image(normalized_pixels(images, self.pixels.mean, self.pixels.std, ctx.dtype), ctx)

    def encode_text(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context
    ) -> Float[Array, "batch embed"]:
        """Unit embeddings of token ids, float32; `end` is the position of each text's end token."""
        # Other keys than the image tower's: what dropout takes from a text is independent of its image.
        return unit(self.text_projection(self.text(tokens, end, ctx.fold(1))))

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
      image_projection: whether the image tower's vector is projected to the shared space; if not, it is as wide.
      image_projection_bias: whether that projection has a bias, as the last layer of CLIP's ResNets has.
      text_projection_bias: whether the projection of the text tower's vector has a bias.
    """

    image: ViTConfig | ModifiedResNetConfig | ResNetConfig
    text: TextConfig | BertConfig
    embed_dim: int
    pixels: PixelsConfig = PixelsConfig()
    image_projection: bool = True
    image_projection_bias: bool = False
    text_projection_bias: bool = False

    # The model's parameters beside towers and projections.
    scalars: ClassVar[tuple[str, ...]] = ("logit_scale",)

    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"In-batch accuracy": ("batch_accuracy",)}

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim")
        width = self.image.output_width
        if not self.image_projection and self.embed_dim != width:
            raise UserError(f"embed_dim={self.embed_dim} must be {width}, the image tower's: no image_projection")
        if self.image_projection_bias and not self.image_projection:
            raise UserError("image_projection_bias=True needs image_projection=True")

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
        return loss, {"batch_accuracy": accuracy, "logit_scale": scale} | spreads(images, texts)

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """Clamps `logit_scale` to log(100), which is a temperature of at least 0.01 (section 2.5)."""
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}


def spreads(images: Float[Array, "batch embed"], texts: Float[Array, "batch embed"]) -> dict[str, Float[Array, ""]]:
    """How far the embeddings of a batch lie apart: their variance around their mean, 0 if they are all alike.

    A collapsed model has a loss of log(batch) and next to no gradient; see `jaxclip.watch`.
    """
    found = {}
    for name, rows in (("image_spread", images), ("text_spread", texts)):
        rows = jax.lax.stop_gradient(rows).astype(jnp.float32)
        centered = rows - jnp.mean(rows, axis=0)
        found[name] = jnp.mean(jnp.sum(centered**2, axis=1))
    return found


def embed(
    model: CLIP, batch: Mapping[str, Array], ctx: Context
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """Unit embeddings of images and of texts, rounded to `ctx.dtype` as the towers' own values are."""
    images = model.encode_image(batch["image"], ctx)
    texts = model.encode_text(batch["text"], batch["text_end"], ctx)
    return images.astype(ctx.dtype), texts.astype(ctx.dtype)
