"""The vision transformers of CLIP and of SigLIP.

CLIP's (Radford et al. 2021, section 2.4; OpenAI's clip/model.py `VisionTransformer`) is read at a class token; SigLIP's
(Zhai et al. 2023; google-research/big_vision, models/vit.py) pools its patches by attention.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.layers import Activation, LayerNorm, Remat, dropout, linear, normal, uniform, zeros
from jaxclip.towers.pooling import MapHead
from jaxclip.towers.transformer import BlockConfig, Transformer, check_block, layer_keys, published_image_init


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Attributes:
    image_size: pixels of a side of the square image.
    patch_size: pixels of a side of a square patch; what `image_size` has beyond a multiple of it is not seen.
    width, heads, mlp_width, activation, eps: of the blocks, see `transformer.BlockConfig`.
    layers: how many blocks.
    pool: "class", the state of a class token that goes before the patches; "map", attention pooling of the patches.
    ln_pre: a layer normalization before the first block.
    patch_bias: of the patch embedding.
    scan, remat: how the blocks run, see `transformer.Transformer`.
    patch_drop: the share of patches left out in training (FLIP, Li et al. 2023, section 3), 0 for none.
    drop: share of the values that dropout sets to 0 in training, of the embedded patches and in the blocks.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int = 0
    activation: Activation = "quick_gelu"
    eps: float = 1e-5
    pool: Literal["class", "map"] = "class"
    ln_pre: bool = True
    patch_bias: bool = False
    scan: bool = True
    remat: Remat = "none"
    patch_drop: float = 0.0
    drop: float = 0.0
    name: Literal["vit"] = "vit"

    def __post_init__(self):
        check_at_least(self, 1, "image_size", "patch_size", "layers")
        if self.image_size < self.patch_size:
            raise UserError(f"image_size={self.image_size} must be at least patch_size={self.patch_size}")
        check_block(self.block)
        if not 0 <= self.patch_drop < 1:
            raise UserError(f"patch_drop={self.patch_drop} must be at least 0 and below 1")

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.heads, self.mlp_width, self.activation, self.eps, drop=self.drop)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def output_width(self) -> int:
        """Of the pooled vector."""
        return self.width

    def init(self, *, rngs: nnx.Rngs) -> ViT:
        """The tower, freshly initialized."""
        return ViT(self, rngs=rngs)


def patchify(images: Float[Array, "batch height width 3"], patch: int) -> Float[Array, "batch patches values"]:
    """Cuts images into rows of `patch` x `patch` x 3 values, patches in reading order; a rest is cut off.

    >>> patchify(jnp.zeros((2, 33, 32, 3)), 16).shape
    (2, 4, 768)
    """
    batch, height, width, channels = images.shape
    images = images[:, : height // patch * patch, : width // patch * patch]
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class ViT(nnx.Module):
    """Patches, class token, positions, ln_pre, blocks, ln_post, pooling; an `interface.TokenTower`.

    >>> config = ViTConfig(image_size=32, patch_size=16, width=64, layers=1, heads=2)
    >>> tower, images = config.init(rngs=nnx.Rngs(params=0)), jnp.zeros((2, 32, 32, 3))
    >>> tower(images).shape, tower.tokens(images).shape
    ((2, 64), (2, 5, 64))
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        width, block = config.width, config.block
        values = config.patch_size**2 * 3
        tokens = config.patches + (config.pool == "class")
        self.config = config
        # A convolution whose stride is its size is a matrix product over patches, which every backend does fast.
        self.patch_kernel = nnx.Param(uniform(values**-0.5)(rngs.params(), (values, width)))
        if config.patch_bias:
            self.patch_bias = nnx.Param(zeros(rngs.params(), (width,)))
        if config.pool == "class":
            self.class_embedding = nnx.Param(normal(width**-0.5)(rngs.params(), (width,)))
        self.positions = nnx.Param(normal(width**-0.5)(rngs.params(), (tokens, width)))
        if config.ln_pre:
            self.ln_pre = LayerNorm(width, config.eps)
        init = published_image_init(width, block.hidden)
        keys = layer_keys(rngs, config.layers)
        self.transformer = Transformer(block, init, keys, scan=config.scan, remat=config.remat)
        self.ln_post = LayerNorm(width, config.eps)
        if config.pool == "map":
            self.map_head = MapHead(block, init, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width 3"], ctx: Context = Context()
    ) -> Float[Array, "batch channels"]:
        """The normalized state of the class token, or attention pooling of all tokens."""
        x = self._states(images, ctx)
        # Of a class token alone one state is normalized, not all.
        return self.ln_post(x[:, 0]) if self.config.pool == "class" else self.pool(self.ln_post(x))

    def tokens(
        self, images: Float[Array, "batch height width 3"], ctx: Context = Context()
    ) -> Float[Array, "batch tokens channels"]:
        """The states of all tokens after `ln_post`, first the class token if there is one."""
        return self.ln_post(self._states(images, ctx))

    def pool(self, tokens: Float[Array, "batch tokens channels"]) -> Float[Array, "batch channels"]:
        """The pooled vector of what `tokens` gives."""
        return tokens[:, 0] if self.config.pool == "class" else self.map_head(tokens)

    def _states(
        self, images: Float[Array, "batch height width 3"], ctx: Context
    ) -> Float[Array, "batch tokens channels"]:
        """Before `ln_post`."""
        config, dtype = self.config, images.dtype
        x = patchify(images, config.patch_size)
        positions = self.positions[...].astype(dtype)
        first, positions = jnp.split(positions, [positions.shape[0] - config.patches])
        if ctx.keys is not None and config.patch_drop:
            keep = max(1, round(config.patches * (1 - config.patch_drop)))
            noise = jax.vmap(lambda key: jax.random.uniform(key, (config.patches,)))(ctx.keys)
            kept = jnp.argsort(noise, axis=1)[:, :keep]
            # Dropped before the patch embedding: the work on patches that are not kept is saved too.
            x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
            positions = positions[kept]
        if config.pool == "class":
            first = first + self.class_embedding[...].astype(dtype)
        if config.patch_bias:
            positions = positions + self.patch_bias[...].astype(dtype)
        before = len(first)
        attention = self.transformer.attention(ctx, before + x.shape[1], dtype)
        # Room for the class token, and for what the attention wants, is made among the patches: the compiler moves them
        # once as it is, while each change of the number of tokens behind the product would move all states again.
        x = jnp.pad(x, ((0, 0), (before, attention.padding), (0, 0)))
        lead = positions.shape[:-2]
        rows = [jnp.broadcast_to(first, (*lead, *first.shape)), positions]
        rows.append(jnp.zeros((*lead, attention.padding, config.width), dtype))
        x = linear(x, self.patch_kernel[...], flat=not ctx.on_tpu) + jnp.concatenate(rows, axis=-2)
        x = dropout(x, config.drop, ctx.keys, 0)
        return self.transformer(ctx.constrain(self.ln_pre(x) if config.ln_pre else x), ctx, attention=attention)
