"""PIRL: Self-Supervised Learning of Pretext-Invariant Representations (Misra and van der Maaten 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs, RecordId
from jaxclip.losses.noise_contrastive import noise_contrastive
from jaxclip.losses.queued import similarities
from jaxclip.towers.backbone import Backbone
from jaxclip.towers.bank import Bank
from jaxclip.towers.layers import Linear, uniform, unit
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.vit import ViTConfig

Images = UInt8[Array, "batch height width 3"]
Patches = UInt8[Array, "batch 9 patch patch 3"]

_PATCHES = 9
_DRAW = 1  # salt of the negatives


class PIRL(Backbone):
    """An image tower with two heads: f of an image, g of its patches (section 2.3)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.pixels, rngs=rngs)

        def head(inputs: int) -> Linear:
            start = uniform(inputs**-0.5)
            return Linear(inputs, method.embed_dim, kernel=start, bias=start, rngs=rngs)

        self.image_head = head(method.image.output_width)
        self.patch_head = head(method.image.output_width)
        self.jigsaw_head = head(_PATCHES * method.embed_dim)

    def embed(self, images: Images, ctx: Context = Context()) -> Float[Array, "batch embed"]:
        """f: unit embeddings of 8-bit RGB images, float32."""
        return unit(self.image_head(self.features(images, ctx)))

    def embed_patches(self, patches: Patches, ctx: Context = Context()) -> Float[Array, "batch embed"]:
        """g: unit embeddings of nine patches each in the order that they have, float32."""
        rows = ctx.constrain(patches.reshape(-1, *patches.shape[2:]))
        keys = None if ctx.keys is None else jax.vmap(lambda key: jax.random.split(key, _PATCHES))(ctx.keys).ravel()
        embedded = self.patch_head(self.features(rows, dataclasses.replace(ctx, keys=keys)))
        return unit(self.jigsaw_head(embedded.reshape(len(patches), -1)))


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """PIRL's keys in a config. `config.data.views` has two: `image`, and `jigsaw`, which the patches are cut from.

    Attributes:
      image: the tower, which sees images and patches. One that is not a ResNet must have the size of the patches.
      records: how many the training data have; the bank has a vector of each.
      pixels: preprocessing.
      embed_dim: width of the embeddings.
      jigsaw_size: pixels of a side of the view that is divided into 3 x 3 cells; a multiple of 3.
      patch_size: pixels of a side of the patch that is cut from each cell at random.
      negatives: records that every image of a batch is compared with, drawn at each step.
      temperature: cosines are divided by it.
      bank_momentum: weight of the old vector when a record's vector in the bank is moved.
      patches_weight: lambda, the weight of the loss of the patches; that of the image has the rest (equation 5).
    """

    image: ResNetConfig | ModifiedResNetConfig | ViTConfig
    records: int
    pixels: PixelsConfig = PixelsConfig()
    embed_dim: int = 128
    jigsaw_size: int = 255
    patch_size: int = 64
    negatives: int = 32_000
    temperature: float = 0.07
    bank_momentum: float = 0.5
    patches_weight: float = 0.5

    task: ClassVar[str] = ""
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Parts of the loss": ("patches_loss", "image_loss"),
        "Patches nearest to their own image": ("patches_accuracy",),
    }

    def __post_init__(self):
        check_at_least(self, 1, "records", "embed_dim", "negatives", "patch_size")
        if self.jigsaw_size % 3 or self.jigsaw_size // 3 < self.patch_size:
            raise UserError(
                f"jigsaw_size={self.jigsaw_size} must be a multiple of 3 and at least three times "
                f"patch_size={self.patch_size}"
            )
        if self.patch_size != self.image.image_size and not isinstance(self.image, ResNetConfig):
            raise UserError(
                f"patch_size={self.patch_size} must be image.image_size={self.image.image_size} for a tower with "
                f"positions; a ResNet sees any size"
            )
        for name in ("bank_momentum", "patches_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0 and at most 1")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0")

    def inputs(self) -> Inputs:
        """An image, a view of it to cut patches from, and the number of the record."""
        return {
            "image": Image(self.image.image_size, self.pixels, view="image"),
            "jigsaw": Image(self.jigsaw_size, self.pixels, view="jigsaw"),
            "record": RecordId(self.records),
        }

    def init(self, rngs: nnx.Rngs) -> PIRL:
        """The model, freshly initialized."""
        return PIRL(self, rngs=rngs)

    def memory(self, model: nnx.Module, rngs: nnx.Rngs) -> Bank:
        """The bank of all records."""
        return Bank(self.records, self.embed_dim, rngs=rngs)

    def loss(
        self, model: PIRL, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """lambda L(m_I, g(v_It)) + (1 - lambda) L(m_I, f(v_I)), the mean over the global batch (equation 5).

        Records of a validation are not in the bank; there m_I is f(v_I).
        """
        bank, ids = ctx.memory, batch["record"]
        patches, images = ctx.each(self._embed, {name: batch[name] for name in ("image", "jigsaw")})
        own = bank.read(ids) if ctx.train else images
        key = jax.random.fold_in(jax.random.key(0) if ctx.key is None else ctx.key, _DRAW)
        drawn = bank.draw(key, self.negatives)
        others = bank.read(drawn)
        excluded = (ids[:, None] == drawn) & ctx.train

        def compared(embeddings: Array) -> tuple[Array, Array]:
            positive = jnp.sum(embeddings * own, axis=1) / self.temperature
            negatives = similarities(embeddings, others, ctx.mesh) / self.temperature
            hits = positive > jnp.max(jnp.where(excluded, -jnp.inf, negatives), axis=1)
            return jnp.mean(noise_contrastive(positive, negatives, excluded)), jnp.mean(hits.astype(jnp.float32))

        patches_loss, accuracy = compared(patches)
        image_loss, _ = compared(images)
        if ctx.train:
            bank.update(ids, images, self.bank_momentum)
        loss = self.patches_weight * patches_loss + (1 - self.patches_weight) * image_loss
        return loss, {"patches_loss": patches_loss, "image_loss": image_loss, "patches_accuracy": accuracy}

    def _embed(self, model: PIRL, rows: Mapping[str, Array], ctx: Context) -> tuple[Array, Array]:
        # In validation the patches are the same for every record, but at random places, too.
        count = len(rows["jigsaw"])
        keys = jnp.broadcast_to(jax.random.key(0), (count,)) if ctx.keys is None else ctx.keys
        patches = model.embed_patches(jigsaw(rows["jigsaw"], keys, self.patch_size), ctx)
        return patches, model.embed(rows["image"], ctx)


def jigsaw(images: Images, keys: Key[Array, "batch"], patch: int) -> Patches:
    """A patch from a random place of each of an image's 3 x 3 cells, in random order (section 2.3).

    Args:
      images: their side a multiple of 3.
      keys: one per image; the only source of randomness.
      patch: side of a patch.
    """
    cell = images.shape[1] // 3

    def one(image: UInt8[Array, "height width 3"], key: Key[Array, ""]) -> UInt8[Array, "9 patch patch 3"]:
        order_key, place_key = jax.random.split(key)
        order = jax.random.permutation(order_key, _PATCHES)
        corners = cell * jnp.stack([order // 3, order % 3], axis=1)
        corners += jax.random.randint(place_key, corners.shape, 0, cell - patch + 1)
        return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, (*corner, 0), (patch, patch, 3)))(corners)

    return jax.vmap(one)(images, keys)
