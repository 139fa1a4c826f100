"""ResNet with bottlenecks (He et al. 2016; torchvision's models/resnet.py), without its classifier."""

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
from jaxclip.towers.batch_norm import STATISTICS, BatchNorm
from jaxclip.towers.layers import Initializer, Remat, linear, normal

Images = Float[Array, "batch height width channels"]
RGB = Float[Array, "batch height width 3"]


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Attributes:
    image_size: pixels of a side of the square image.
    layers: bottlenecks of each of the four stages; (3, 4, 6, 3) is the ResNet-50.
    width: channels after the stem; the last stage gives 32 times as many.
    remat: what the backward pass recomputes of each bottleneck: "none" keeps everything, "dots" keeps what the
      convolutions give, "full" keeps only the bottleneck's input. Batch statistics are always kept.
    norm_groups: parts of the batch that batch normalization takes statistics of, see `batch_norm.BatchNorm`.
    zero_init: whether the last scales of the bottlenecks begin as 0, and so each as its shortcut (Goyal et al. 2017,
      section 5.1).
    """

    image_size: int
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    remat: Remat = "none"
    norm_groups: int = 1
    zero_init: bool = False
    name: Literal["resnet"] = "resnet"

    def __post_init__(self):
        check_at_least(self, 1, "image_size", "width", "norm_groups")
        check_layers(self.layers)

    @property
    def output_width(self) -> int:
        """Of the pooled vector."""
        return 32 * self.width

    def init(self, *, rngs: nnx.Rngs) -> ResNet:
        """The tower, freshly initialized."""
        return ResNet(self, rngs=rngs)


def check_layers(layers: tuple[int, ...]) -> None:
    """Raises UserError unless there are four stages of at least one bottleneck."""
    if len(layers) != 4 or min(layers) < 1:
        raise UserError(f"layers={layers} must be four numbers of at least 1, the bottlenecks of each stage")


def kaiming_normal(key: jax.Array, shape: Any) -> jax.Array:
    """Initializer of a convolution: normal of variance 2 / fan out (He et al. 2015), as torchvision's ResNet has it."""
    return normal(math.sqrt(2 / (shape[0] * shape[1] * shape[3])))(key, shape)


def conv(x: Images, kernel: Float[Array, "rows columns inputs outputs"], *, stride: int = 1) -> Array:
    """The bias-free convolution by an odd square kernel, padded on every side by its half, in the dtype of x.

    >>> conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 16)), stride=2).shape
    (1, 4, 4, 16)
    """
    size = kernel.shape[0]
    if size == 1:
        # XLA's CPU backend does the step of a ResNet-50 in two thirds of the time so; on TPU it is the same program.
        return linear(x[:, ::stride, ::stride], kernel[0, 0])
    # Explicit, as torch pads: with a stride of 2, "SAME" would pad even sizes on the right alone.
    sides = (size // 2, size // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=(sides, sides),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def average_pool(x: Images, size: int) -> Array:
    """Means of squares of `size` x `size` pixels, which must tile the image.

    >>> average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 2).item()
    1.5
    """
    if size == 1:
        return x
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // size, size, width // size, size, channels), axis=(2, 4))


class Bottleneck(nnx.Module):
    """Convolutions 1x1, 3x3 and 1x1 to four times `planes` channels, each with its BatchNorm, beside a shortcut.

    Args:
      inputs: channels that come in.
      planes: channels of the 3x3 convolution.
      stride: of the 3x3 convolution and of the shortcut ("v1.5": the original had it in the first convolution).
      pool: side of the average pool behind the 3x3 convolution and before the shortcut's.
      init: initializer of the convolutions.
      groups: of the batch normalizations.
    """

    def __init__(
        self,
        inputs: int,
        planes: int,
        *,
        stride: int = 1,
        pool: int = 1,
        init: Initializer,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        def kernel(size: int, inputs: int, outputs: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))

        outputs = 4 * planes
        self.stride = stride
        self.pool = pool
        self.conv1_kernel = kernel(1, inputs, planes)
        self.bn1 = BatchNorm(planes, groups)
        self.conv2_kernel = kernel(3, planes, planes)
        self.bn2 = BatchNorm(planes, groups)
        self.conv3_kernel = kernel(1, planes, outputs)
        self.bn3 = BatchNorm(outputs, groups)
        self.has_downsample = stride * pool > 1 or inputs != outputs
        if self.has_downsample:
            self.downsample_kernel = kernel(1, inputs, outputs)
            self.downsample_bn = BatchNorm(outputs, groups)

    def __call__(self, x: Images, train: bool) -> Array:
        y = jax.nn.relu(self.bn1(conv(x, self.conv1_kernel[...]), train))
        y = jax.nn.relu(self.bn2(conv(y, self.conv2_kernel[...], stride=self.stride), train))
        y = self.bn3(conv(average_pool(y, self.pool), self.conv3_kernel[...]), train)
        if self.has_downsample:
            x = conv(average_pool(x, self.pool), self.downsample_kernel[...], stride=self.stride)
            x = self.downsample_bn(x, train)
        return jax.nn.relu(x + y)


def run(block: Bottleneck, x: Images, *, train: bool, remat: Remat) -> Array:
    """Calls the block, rematerialized or not; in training its running averages move either way."""
    if remat == "none":
        return block(x, train)
    graph, state = nnx.split(block)

    # Pure: new running averages are an output. Written from within, they would be tracers that outlive their trace.
    def pure(x: jax.Array, state: nnx.State) -> tuple[jax.Array, nnx.State]:
        block = nnx.merge(graph, state)
        return block(x, train), nnx.state(block, nnx.BatchStat)

    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(STATISTICS)
    if remat == "dots":
        # Convolutions count as dots.
        policy = policies.save_from_both_policies(policies.dots_saveable, policy)
    y, averages = jax.checkpoint(pure, policy=policy)(x, state)
    nnx.update(block, averages)
    return y


class Stages(nnx.Module):
    """The four stages that every ResNet has; a tower adds the stem before and the pooling after them.

    The bottlenecks are attributes named layer{stage from 1}_{bottleneck from 0}. Stages have width, 2, 4 and 8 times
    width planes, and all but the first begin by halving the image's side.

    Args:
      width: channels that come in.
      layers: bottlenecks of each stage.
      pooled: whether an average pool halves the side, instead of a stride.
      init: initializer of the convolutions.
      remat, norm_groups, zero_init: see `ResNetConfig`.
    """

    def __init__(
        self,
        width: int,
        layers: tuple[int, int, int, int],
        *,
        pooled: bool,
        init: Initializer,
        remat: Remat,
        norm_groups: int,
        zero_init: bool,
        rngs: nnx.Rngs,
    ):
        self.layers = layers
        self.remat = remat
        inputs = width
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            for number in range(blocks):
                by = 2 if stage and not number else 1
                halving = {"pool": by} if pooled else {"stride": by}
                block = Bottleneck(inputs, planes, init=init, groups=norm_groups, rngs=rngs, **halving)
                if zero_init:
                    block.bn3.scale.set_value(jnp.zeros_like(block.bn3.scale[...]))
                setattr(self, f"layer{stage + 1}_{number}", block)
                inputs = 4 * planes

    def stages(self, x: Images, ctx: Context) -> Array:
        """[batch, h, w, width] -> [batch, h/8, w/8, 32 width]."""
        for stage, blocks in enumerate(self.layers):
            for number in range(blocks):
                x = run(getattr(self, f"layer{stage + 1}_{number}"), x, train=ctx.train, remat=self.remat)
            x = ctx.constrain(x)
        return x

    def grid(self, images: RGB, ctx: Context = Context()) -> Float[Array, "batch rows columns channels"]:
        """What the last stage gives, [batch, image_size / 32, image_size / 32, 32 width]."""
        raise NotImplementedError

    def pool(self, grid: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch channels"]:
        """The pooled vector of what `grid` gives."""
        raise NotImplementedError

    def tokens(self, images: RGB, ctx: Context = Context()) -> Float[Array, "batch tokens channels"]:
        """The pixels of `grid` in reading order."""
        grid = self.grid(images, ctx)
        return grid.reshape(len(grid), -1, grid.shape[-1])

    def __call__(self, images: RGB, ctx: Context = Context()) -> Float[Array, "batch channels"]:
        """The pooled vector, not projected."""
        return self.pool(self.grid(images, ctx))


class ResNet(Stages):
    """A 7x7 convolution, max pool, four stages, the mean over all pixels; an `interface.GridTower`.

    >>> tower = ResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=4).init(rngs=nnx.Rngs(params=0))
    >>> images = jnp.zeros((2, 64, 64, 3))
    >>> tower(images).shape, tower.grid(images).shape
    ((2, 128), (2, 2, 2, 128))
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, groups = config.width, config.norm_groups
        self.conv1_kernel = nnx.Param(kaiming_normal(rngs.params(), (7, 7, 3, width)))
        self.bn1 = BatchNorm(width, groups)
        super().__init__(
            width,
            config.layers,
            pooled=False,
            init=kaiming_normal,
            remat=config.remat,
            norm_groups=groups,
            zero_init=config.zero_init,
            rngs=rngs,
        )

    def grid(self, images: RGB, ctx: Context = Context()) -> Float[Array, "batch rows columns channels"]:
        """What the last stage gives, [batch, image_size / 32, image_size / 32, 32 width]."""
        x = jax.nn.relu(self.bn1(conv(images, self.conv1_kernel[...], stride=2), ctx.train))
        sides = ((0, 0), (1, 1), (1, 1), (0, 0))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), sides)
        return self.stages(ctx.constrain(x), ctx)

    def pool(self, grid: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch channels"]:
        """The mean over all pixels."""
        return jnp.mean(grid, axis=(1, 2))
