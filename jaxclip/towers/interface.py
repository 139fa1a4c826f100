"""The call contract of all towers, which methods rely on."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Array, Float, Int

from jaxclip.context import Context


class ImageTower(Protocol):
    """An encoder of images. Its config's `output_width` is the width of the pooled vector.

    In all functions images are normalized pixels, [batch, image_size, image_size, 3], in the dtype to compute in. Of
    the context a tower uses `train` (batch normalization by the statistics of the batch), `keys` (one per record, for
    dropout and for the patches that are left out; nothing is random without them) and `constrain` (pins the sharding
    of activations at the edges of blocks).
    """

    def __call__(
        self, images: Float[Array, "batch height width 3"], ctx: Context = Context()
    ) -> Float[Array, "batch output_width"]:
        """The pooled vector of each image, neither projected nor scaled to unit length."""
        ...

    def tokens(
        self, images: Float[Array, "batch height width 3"], ctx: Context = Context()
    ) -> Float[Array, "batch tokens channels"]:
        """The states of all tokens. Of a vision transformer they are those after its last layer normalization, first
        the class token if there is one; of a ResNet they are the pixels of its last stage in reading order.
        """
        ...


class GridTower(ImageTower, Protocol):
    """An image tower whose tokens form a grid that convolutions can run over."""

    def grid(
        self, images: Float[Array, "batch height width 3"], ctx: Context = Context()
    ) -> Float[Array, "batch rows columns channels"]:
        """What the last stage gives."""
        ...

    def pool(self, grid: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch output_width"]:
        """The pooled vector of `grid`."""
        ...


class TokenTower(ImageTower, Protocol):
    """An image tower whose tokens form a sequence."""

    def pool(self, tokens: Float[Array, "batch tokens channels"]) -> Float[Array, "batch output_width"]:
        """The pooled vector of `tokens`."""
        ...


class TextTower(Protocol):
    """An encoder of texts. Its config's `output_width` is the width of the pooled vector.

    In all functions `tokens` are token ids, [batch, context_length], and `end` [batch] is the position of each text's
    end token. A tower computes in `ctx.dtype`; of the context it uses `keys` and `constrain` as an image tower does.
    """

    def __call__(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch output_width"]:
        """The pooled vector of each text, neither projected nor scaled to unit length."""
        ...

    def tokens(
        self, tokens: Int[Array, "batch context"], end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch context width"]:
        """The states of all tokens, after the last layer normalization."""
        ...

    def pool(
        self, states: Float[Array, "batch context width"], end: Int[Array, "batch"]
    ) -> Float[Array, "batch output_width"]:
        """The pooled vector of what `tokens` gives."""
        ...
