"""CLIP's vision transformer (Radford et al. 2021, section 2.4; OpenAI's clip/model.py `VisionTransformer`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxclip.config import check_at_least
from jaxclip.errors import UserError
from jaxclip.towers.layers import LayerNorm, Remat, Transformer, linear, normal, published_image_init, uniform


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Attributes:
    image_size: pixels of the square input picture.
    patch_size: pixels of a square patch; divides `image_size`.
    width, layers, heads: of the transformer.
    scan, remat: how its blocks run, see `layers.Transformer`.
    patch_drop: the share of patches left out in training (FLIP, Li et al. 2023, section 3), 0 for none.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    scan: bool = True
    remat: Remat = "none"
    patch_drop: float = 0.0

    def __post_init__(self):
        check_at_least(self, 1, "image_size", "patch_size", "width", "layers", "heads")
        if self.image_size % self.patch_size:
            raise UserError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.width % self.heads:
            raise UserError(f"width={self.width} must be a multiple of heads={self.heads}")
        if not 0 <= self.patch_drop < 1:
            raise UserError(f"patch_drop={self.patch_drop} must be at least 0 and below 1")

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def patchify(images: Float[Array, "batch height width 3"], patch: int) -> Float[Array, "batch patches values"]:
    """Cuts pictures into rows of `patch` x `patch` x 3 values, patches in reading order."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class ViT(nnx.Module):
    """Patches, class token, positions, ln_pre, blocks, ln_post on the class token, bias-free projection."""

    def __init__(self, config: ViTConfig, embed_dim: int, *, rngs: nnx.Rngs):
        width = config.width
        values = config.patch_size**2 * 3
        self.config = config
        # A convolution whose stride is its size is a matrix product over patches, which every backend does fast.
        self.patch_kernel = nnx.Param(uniform(values**-0.5)(rngs.params(), (values, width)))
        self.class_embedding = nnx.Param(normal(width**-0.5)(rngs.params(), (width,)))
        self.positions = nnx.Param(normal(width**-0.5)(rngs.params(), (config.patches + 1, width)))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            published_image_init(width),
            scan=config.scan,
            remat=config.remat,
            rngs=rngs,
        )
        self.ln_post = LayerNorm(width)
        self.projection = nnx.Param(normal(width**-0.5)(rngs.params(), (width, embed_dim)))

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        drop_keys: Key[Array, "batch"] | None = None,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Float[Array, "batch embed"]:
        """Embeds normalised pictures.

        Args:
          images: [batch, image_size, image_size, 3] in the dtype to compute in.
          drop_keys: [batch] random keys, where given: each picture keeps a random (1 - patch_drop) of its patches. One
            key per picture, so that what is dropped does not depend on which others are in the call.
          constrain: pins the sharding of activations at the blocks' edges.

        Returns:
          [batch, embed], not normalised.
        """
        dtype = images.dtype
        x = patchify(images, self.config.patch_size)
        positions = self.positions[...].astype(dtype)
        if drop_keys is not None and self.config.patch_drop:
            keep = max(1, round(self.config.patches * (1 - self.config.patch_drop)))
            noise = jax.vmap(lambda key: jax.random.uniform(key, (self.config.patches,)))(drop_keys)
            kept = jnp.argsort(noise, axis=1)[:, :keep]
            # Dropped before the patch embedding: the work on patches that are not kept is saved too.
            x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
            x = linear(x, self.patch_kernel[...]) + positions[1:][kept]
        else:
            x = linear(x, self.patch_kernel[...]) + positions[1:]
        first = self.class_embedding[...].astype(dtype) + positions[0]
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[2])), x], axis=1)
        x = constrain(self.ln_pre(x))
        x = self.transformer(x, constrain=constrain)
        return linear(self.ln_post(x[:, 0]), self.projection[...])
