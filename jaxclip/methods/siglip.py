"""SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.context import Context
from jaxclip.losses.contrastive import sigmoid_contrastive
from jaxclip.methods import clip


class SigLIP(clip.CLIP):
    """Two towers, a temperature and a bias, initialized as in the paper (section 3.2, algorithm 1)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(10.0), jnp.float32))
        self.logit_bias = nnx.Param(jnp.asarray(-10.0, jnp.float32))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Logits of pairs are scale * cosine + bias."""
        return jnp.exp(self.logit_scale[...]), self.logit_bias[...]


@dataclasses.dataclass(frozen=True)
class Method(clip.Method):
    """SigLIP's keys in a config are CLIP's."""

    scalars: ClassVar[tuple[str, ...]] = ("logit_scale", "logit_bias")

    def init(self, rngs: nnx.Rngs) -> SigLIP:
        """The model, freshly initialized."""
        return SigLIP(self, rngs=rngs)

    def loss(
        self, model: SigLIP, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of every pair of the global batch on its own (algorithm 1)."""
        images, texts = ctx.each(clip.embed, batch)
        scale, bias = model.scale_and_bias()
        loss = sigmoid_contrastive(images, texts, scale, bias, mesh=ctx.mesh)
        return loss, {"logit_scale": scale, "logit_bias": bias} | clip.spreads(images, texts)

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters as they are: the paper bounds none of them."""
        return params
