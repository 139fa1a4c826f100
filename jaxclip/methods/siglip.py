"""SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxclip.losses.contrastive import sigmoid_contrastive
from jaxclip.methods import clip
from jaxclip.methods.clip import CLIP


class SigLIP(CLIP):
    """Two towers, a temperature and a bias, which start where the paper has them (section 3.2, algorithm 1)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(10.0), jnp.float32))
        self.logit_bias = nnx.Param(jnp.asarray(-10.0, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Method(clip.Method):
    """SigLIP's keys in a config are CLIP's."""

    def init(self, rngs: nnx.Rngs) -> SigLIP:
        """The model, freshly initialised."""
        return SigLIP(self, rngs=rngs)

    def loss(
        self, model: SigLIP, embedded: Mapping[str, Array], *, mesh: Mesh | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of every pair of the global batch on its own."""
        scale, bias = jnp.exp(model.logit_scale[...]), model.logit_bias[...]
        loss = sigmoid_contrastive(embedded["image"], embedded["text"], scale, bias, mesh=mesh)
        return loss, {"logit_scale": scale, "logit_bias": bias}

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters as they are: the paper bounds none of them."""
        return params
