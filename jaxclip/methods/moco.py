"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen et al. 2020; MoCo, He et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least, check_shares
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs
from jaxclip.losses.queued import cross_entropy, similarities
from jaxclip.towers.backbone import Backbone
from jaxclip.towers.layers import TwoLayers, unit
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.momentum import Queue, follow
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.vit import ViTConfig

Images = UInt8[Array, "batch height width 3"]

_QUERY, _KEY, _ORDER = 1, 2, 3  # salts of the step's randomness


class MoCo(Backbone):
    """An image tower with a head of two layers: f_q, and as a momentum copy f_k."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.pixels, rngs=rngs)
        self.head = TwoLayers(method.image.output_width, method.embed_dim, rngs=rngs)

    def embed(self, images: Images, ctx: Context = Context()) -> Float[Array, "batch embed"]:
        """Unit embeddings of 8-bit RGB images, float32."""
        return unit(self.head(self.features(images, ctx)))


class Memory(nnx.Module):
    """The momentum copy, and the queue of its keys."""

    def __init__(self, model: MoCo, size: int, width: int, *, rngs: nnx.Rngs):
        self.slow = nnx.clone(model)
        self.keys = Queue(size, width, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """MoCo's keys in a config. `config.data.views.moco` augments the two views of an image.

    Attributes:
      image: the tower. Its `norm_groups` are the groups of images whose batch statistics are taken together: in the
        paper those of a GPU. With more than one, the keys of a group are of images from all groups of queries.
      pixels: preprocessing.
      embed_dim: width of queries and keys.
      queue: how many keys of earlier batches a query is compared with; a multiple of the batch size.
      momentum: m of equation 2.
      temperature: cosines are divided by it.
    """

    image: ResNetConfig | ModifiedResNetConfig | ViTConfig
    pixels: PixelsConfig = PixelsConfig()
    embed_dim: int = 128
    queue: int = 65_536
    momentum: float = 0.999
    temperature: float = 0.2

    task: ClassVar[str] = ""
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"Queries nearest to their own key": ("key_accuracy",)}

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim", "queue")
        check_shares(self, "momentum")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0")

    def inputs(self) -> Inputs:
        """Two views of an image: of the query and of its key."""
        return dict.fromkeys(("query", "key"), Image(self.image.image_size, self.pixels, view="moco"))

    def init(self, rngs: nnx.Rngs) -> MoCo:
        """The model, freshly initialized."""
        return MoCo(self, rngs=rngs)

    def memory(self, model: nnx.Module, rngs: nnx.Rngs) -> Memory:
        """The momentum copy and the queue."""
        assert isinstance(model, MoCo)
        return Memory(model, self.queue, self.embed_dim, rngs=rngs)

    def loss(
        self, model: MoCo, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The cross-entropy of each query's own key against the queue (equation 1; algorithm 1)."""
        memory = ctx.memory
        if ctx.train:
            follow(memory.slow, model, self.momentum, ctx.step)
        queries = ctx.each(_queries, batch["query"], salt=_QUERY)
        keys = jax.lax.stop_gradient(self._keys(batch["key"], ctx))
        positive = jnp.sum(queries * keys, axis=1, keepdims=True) / self.temperature
        queue = jax.lax.stop_gradient(memory.keys.queue[...])
        negatives = similarities(queries, queue, ctx.mesh) / self.temperature
        losses = cross_entropy((positive, negatives), (jnp.ones_like(positive), None))
        if ctx.train:
            memory.keys.push(keys)
        hits = positive[:, 0] > jnp.max(negatives, axis=1)
        return jnp.mean(losses), {"key_accuracy": jnp.mean(hits.astype(jnp.float32))}

    def _keys(self, images: Images, ctx: Context) -> Float[Array, "batch embed"]:
        """Keys of the momentum copy, computed in another order than the queries (section 3.3, "Shuffling BN")."""
        if not ctx.train or getattr(self.image, "norm_groups", 1) == 1:
            return ctx.each(_slow_keys, images, salt=_KEY)
        assert ctx.key is not None
        order = jax.random.permutation(jax.random.fold_in(ctx.key, _ORDER), len(images))
        keys = ctx.each(_slow_keys, ctx.constrain(images[order]), salt=_KEY)
        return ctx.constrain(keys[jnp.argsort(order)])


def _queries(model: MoCo, images: Images, ctx: Context) -> Float[Array, "batch embed"]:
    return model.embed(images, ctx)


def _slow_keys(_: Any, images: Images, ctx: Context) -> Float[Array, "batch embed"]:
    return ctx.memory.slow.embed(images, ctx)
