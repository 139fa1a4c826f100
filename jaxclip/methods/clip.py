"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxclip.config import PixelsConfig, check_at_least
from jaxclip.errors import UserError
from jaxclip.losses.contrastive import softmax_contrastive
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig

MAX_LOGIT_SCALE = math.log(100.0)


def unit(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Rows scaled to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


class CLIP(nnx.Module):
    """Two towers and a temperature."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        self.pixels = method.pixels
        self.image = method.image.init(method.embed_dim, rngs=rngs)
        self.text = method.text.init(method.embed_dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(
        self,
        images: UInt8[Array, "batch height width 3"],
        *,
        dtype: Any,
        train: bool = False,
        drop_keys: Key[Array, "batch"] | None = None,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch embed"]:
        """Unit embeddings of 8-bit RGB pictures, which are normalised here, on the device.

        `train` normalises batches by their own statistics, where the tower has such layers, and updates the running
        ones.
        """
        mean, std = jnp.asarray(self.pixels.mean), jnp.asarray(self.pixels.std)
        pixels = ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
        return unit(self.image(pixels, train=train, drop_keys=drop_keys, constrain=constrain))

    def encode_text(
        self,
        tokens: Int[Array, "batch context"],
        text_end: Int[Array, "batch"],
        *,
        dtype: Any,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch embed"]:
        """Unit embeddings of token ids; `text_end` is where each text's end token stands."""
        return unit(self.text(tokens, text_end, dtype=dtype, constrain=constrain))


@dataclasses.dataclass(frozen=True)
class Method:
    """CLIP's keys in a config.

    Attributes:
      image: the image tower; its `name` says which, the vision transformer where there is none.
      text: the text tower, likewise; CLIP's transformer where there is no `name`.
      embed_dim: width of the space they share.
      pixels: from pictures to what the image tower takes.
    """

    image: ViTConfig | ModifiedResNetConfig | ResNetConfig
    text: TextConfig | BertConfig
    embed_dim: int
    pixels: PixelsConfig = PixelsConfig()

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim")
        if isinstance(self.image, ViTConfig) and not self.image.projection and self.embed_dim != self.image.width:
            raise UserError(f"embed_dim={self.embed_dim} must be image.width={self.image.width}: no image.projection")

    @property
    def image_size(self) -> int:
        return self.image.image_size

    @property
    def context_length(self) -> int:
        return self.text.context_length

    def init(self, rngs: nnx.Rngs) -> CLIP:
        """The model, freshly initialised."""
        return CLIP(self, rngs=rngs)

    def embed(
        self,
        model: CLIP,
        batch: Mapping[str, Array],
        *,
        keys: Key[Array, "batch"] | None,
        dtype: Any,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> dict[str, Float[Array, "batch embed"]]:
        """Unit embeddings of both towers, rounded to `dtype` as the towers' own values are.

        Args:
          model: as `init` made it.
          batch: `image` uint8 [batch, height, width, 3], `text` int32 [batch, context], `text_end` int32 [batch].
          keys: [batch] random keys for patch dropping in training; None, in evaluation, keeps every patch and leaves
            batch statistics alone.
          dtype: what the towers compute in.
          constrain: pins the sharding of activations.
        """
        train = keys is not None
        images = model.encode_image(batch["image"], dtype=dtype, train=train, drop_keys=keys, constrain=constrain)
        texts = model.encode_text(batch["text"], batch["text_end"], dtype=dtype, constrain=constrain)
        return {"image": images.astype(dtype), "text": texts.astype(dtype)}

    def loss(
        self, model: CLIP, embedded: Mapping[str, Array], *, mesh: Mesh | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The symmetric loss over the global batch of embeddings."""
        scale = jnp.exp(model.logit_scale[...])
        loss, accuracy = softmax_contrastive(embedded["image"], embedded["text"], scale, mesh=mesh)
        return loss, {"batch_accuracy": accuracy, "logit_scale": scale}

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """The temperature kept from falling below 1/100 (section 2.5)."""
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch."""
        size, context = self.image.image_size, self.text.context_length
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch_size, context), jnp.int32),
            "text_end": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }
