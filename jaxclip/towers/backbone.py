"""A model that is an image tower and no text tower: its pixels, and the features that are evaluated."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxclip.config import PixelsConfig
from jaxclip.context import Context
from jaxclip.towers.layers import normalized_pixels


class Backbone(nnx.Module):
    """The image tower, which is what is learned; methods add heads to it.

    Args:
      image: the config of the tower.
      pixels: preprocessing.
    """

    def __init__(self, image: Any, pixels: PixelsConfig, *, rngs: nnx.Rngs):
        self.pixels = pixels
        self.image = image.init(rngs=rngs)

    def features(
        self, images: UInt8[Array, "batch height width 3"], ctx: Context = Context()
    ) -> Float[Array, "batch channels"]:
        """The image tower's pooled output of 8-bit RGB images, in `ctx.dtype`."""
        return self.image(self.normalized(images, ctx), ctx)

    def normalized(
        self, images: UInt8[Array, "batch height width 3"], ctx: Context
    ) -> Float[Array, "batch height width 3"]:
        """8-bit RGB images as the tower reads them."""
        return normalized_pixels(images, self.pixels.mean, self.pixels.std, ctx.dtype)
