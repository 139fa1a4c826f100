"""CLIP's ResNet (Radford et al. 2021, section 2.4; OpenAI's clip/model.py `ModifiedResNet`).

It differs from `resnet.ResNet` by three convolutions for a stem, average pools in place of strides behind it, and
attention in place of the last mean.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.batch_norm import BatchNorm
from jaxclip.towers.layers import Remat, linear, normal, uniform
from jaxclip.towers.resnet import RGB, Stages, average_pool, check_layers, conv


@dataclasses.dataclass(frozen=True)
class ModifiedResNetConfig:
    """Attributes:
    image_size: pixels of a side of the square image, a multiple of 32.
    width: channels after the stem, even; the last stage gives 32 times as many.
    layers: bottlenecks of each of the four stages.
    remat, norm_groups: see `resnet.ResNetConfig`.
    """

    image_size: int
    width: int
    layers: tuple[int, int, int, int]
    remat: Remat = "none"
    norm_groups: int = 1
    name: Literal["modified_resnet"] = "modified_resnet"

    def __post_init__(self):
        check_at_least(self, 1, "image_size", "width", "norm_groups")
        check_layers(self.layers)
        if self.image_size % 32:
            raise UserError(f"image_size={self.image_size} must be a multiple of 32, by which the tower shrinks it")
        if self.width % 2:
            raise UserError(f"width={self.width} must be even: the stem begins with half of it")

    @property
    def heads(self) -> int:
        """Of the attention pool, of 64 channels each."""
        return self.width // 2

    @property
    def output_width(self) -> int:
        """Of the pooled vector."""
        return 32 * self.width

    def init(self, *, rngs: nnx.Rngs) -> ModifiedResNet:
        """The tower, freshly initialized."""
        return ModifiedResNet(self, rngs=rngs)


def torch_uniform(key: jax.Array, shape: Any) -> jax.Array:
    """Initializer: uniform within 1 / sqrt(fan in), torch.nn.Conv2d's own."""
    return uniform(math.prod(shape[:-1]) ** -0.5)(key, shape)


class AttentionPool(nnx.Module):
    """Attention of the mean of all pixels to itself and to the pixels.

    The linear map behind the attention is the method's projection.

    Args:
      pixels: how many there are.
      width: channels of a pixel.
      heads: of the attention; divides `width`.

    >>> AttentionPool(4, 64, 2, rngs=nnx.Rngs(params=0))(jnp.zeros((2, 2, 2, 64))).shape
    (2, 64)
    """

    def __init__(self, pixels: int, width: int, heads: int, *, rngs: nnx.Rngs):
        def kernel() -> nnx.Param:
            return nnx.Param(normal(width**-0.5)(rngs.params(), (width, width)))

        def bias() -> nnx.Param:
            return nnx.Param(uniform(width**-0.5)(rngs.params(), (width,)))

        self.heads = heads
        self.positions = nnx.Param(normal(width**-0.5)(rngs.params(), (pixels + 1, width)))
        self.q_kernel, self.q_bias = kernel(), bias()
        self.k_kernel, self.k_bias = kernel(), bias()
        self.v_kernel, self.v_bias = kernel(), bias()

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
        dtype = x.dtype
        batch, channels = x.shape[0], x.shape[-1]
        head = channels // self.heads
        x = x.reshape(batch, -1, channels)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1) + self.positions[...].astype(dtype)
        q = linear(x[:, 0], self.q_kernel[...], self.q_bias[...]).reshape(batch, self.heads, head)
        # With one query it is cheaper to take the query through the keys' kernel than every token, and to mix the
        # tokens before the values' kernel than after. The keys' bias adds the same to all logits of a query, which
        # the softmax does not see: it is there for the published weights alone.
        k_kernel, v_kernel = (
            kernel[...].astype(dtype).reshape(channels, self.heads, head) for kernel in (self.k_kernel, self.v_kernel)
        )
        q = jnp.einsum("bhd,chd->bhc", q * head**-0.5, k_kernel)
        logits = jnp.einsum("bhc,bnc->bhn", q, x, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
        mixed = jnp.einsum("bhn,bnc->bhc", weights, x)
        return jnp.einsum("bhc,chd->bhd", mixed, v_kernel).reshape(batch, channels) + self.v_bias[...].astype(dtype)


class ModifiedResNet(Stages):
    """Three 3x3 convolutions, average pool, four stages, attention pool; an `interface.GridTower`.

    >>> config = ModifiedResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=4)
    >>> tower, images = config.init(rngs=nnx.Rngs(params=0)), jnp.zeros((2, 64, 64, 3))
    >>> tower(images).shape, tower.grid(images).shape
    ((2, 128), (2, 2, 2, 128))
    """

    def __init__(self, config: ModifiedResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, groups = config.width, config.norm_groups
        self.conv1_kernel = nnx.Param(torch_uniform(rngs.params(), (3, 3, 3, width // 2)))
        self.bn1 = BatchNorm(width // 2, groups)
        self.conv2_kernel = nnx.Param(torch_uniform(rngs.params(), (3, 3, width // 2, width // 2)))
        self.bn2 = BatchNorm(width // 2, groups)
        self.conv3_kernel = nnx.Param(torch_uniform(rngs.params(), (3, 3, width // 2, width)))
        self.bn3 = BatchNorm(width, groups)
        super().__init__(
            width,
            config.layers,
            pooled=True,
            init=torch_uniform,
            remat=config.remat,
            norm_groups=groups,
            zero_init=True,
            rngs=rngs,
        )
        pixels = (config.image_size // 32) ** 2
        self.attention_pool = AttentionPool(pixels, 32 * width, config.heads, rngs=rngs)

    def grid(self, images: RGB, ctx: Context = Context()) -> Float[Array, "batch rows columns channels"]:
        """What the last stage gives, [batch, image_size / 32, image_size / 32, 32 width]."""
        x = jax.nn.relu(self.bn1(conv(images, self.conv1_kernel[...], stride=2), ctx.train))
        x = jax.nn.relu(self.bn2(conv(x, self.conv2_kernel[...]), ctx.train))
        x = jax.nn.relu(self.bn3(conv(x, self.conv3_kernel[...]), ctx.train))
        return self.stages(ctx.constrain(average_pool(x, 2)), ctx)

    def pool(self, grid: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch channels"]:
        """What the attention pool gives, before its last linear map."""
        return self.attention_pool(grid)
