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

from jaxclip.config import check_at_least
from jaxclip.losses.contrastive import softmax_contrastive
from jaxclip.towers.text import TextConfig, TextTransformer
from jaxclip.towers.vit import ViT, ViTConfig

# Channel means and deviations of the published models' inputs (OpenAI's clip/clip.py), of pixels in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = math.log(100.0)


def unit(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Rows scaled to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


class CLIP(nnx.Module):
    """Two towers and a temperature."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        self.image = ViT(method.image, method.embed_dim, rngs=rngs)
        self.text = TextTransformer(method.text, method.embed_dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(
        self,
        images: UInt8[Array, "batch height width 3"],
        *,
        dtype: Any,
        drop_keys: Key[Array, "batch"] | None = None,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch embed"]:
        """Unit embeddings of 8-bit RGB pictures, which are normalised here, on the device."""
        mean, std = jnp.asarray(IMAGE_MEAN), jnp.asarray(IMAGE_STD)
        pixels = ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
        return unit(self.image(pixels, drop_keys=drop_keys, constrain=constrain))

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
    """CLIP's keys in a config: the two towers and the width of the space they share."""

    image: ViTConfig
    text: TextConfig
    embed_dim: int

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim")

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
          keys: [batch] random keys for patch dropping; None keeps every patch.
          dtype: what the towers compute in.
          constrain: pins the sharding of activations.
        """
        images = model.encode_image(batch["image"], dtype=dtype, drop_keys=keys, constrain=constrain)
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
