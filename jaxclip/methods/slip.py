"""SLIP: Self-supervision meets Language-Image Pre-training (Mu et al. 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.config import check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs
from jaxclip.losses.contrastive import nt_xent, softmax_contrastive
from jaxclip.methods import clip
from jaxclip.towers.batch_norm import BatchNorm
from jaxclip.towers.layers import linear, normal, unit

VIEWS = ("first_view", "second_view")


class SelfSupervisedHead(nnx.Module):
    """A multilayer perceptron of three layers with batch normalization (appendix A.1; SimCLR, section 4.2).

    Args:
      inputs: width of the image tower.
      hidden: width of the two hidden layers.
      outputs: width of the embeddings that are compared.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, rngs: nnx.Rngs):
        def kernel(rows: int, columns: int) -> nnx.Param:
            return nnx.Param(normal(rows**-0.5)(rngs.params(), (rows, columns)))

        self.first_kernel, self.first_norm = kernel(inputs, hidden), BatchNorm(hidden)
        self.second_kernel, self.second_norm = kernel(hidden, hidden), BatchNorm(hidden)
        self.third_kernel = kernel(hidden, outputs)

    def __call__(self, x: Float[Array, "batch inputs"], ctx: Context) -> Float[Array, "batch outputs"]:
        for kernel, norm in ((self.first_kernel, self.first_norm), (self.second_kernel, self.second_norm)):
            y = linear(x, kernel[...])
            x = jax.nn.relu(norm(y[:, None, None], ctx.train)[:, 0, 0])
        return linear(x, self.third_kernel[...])


class SLIP(clip.CLIP):
    """CLIP with a second head on the image tower."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method, rngs=rngs)
        widths = method.image.output_width, method.ssl_hidden, method.ssl_dim
        self.ssl_head = SelfSupervisedHead(*widths, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Method(clip.Method):
    """SLIP's keys in a config, besides CLIP's. `config.data.views.ssl` augments the two further views.

    Attributes:
      ssl_hidden, ssl_dim: widths of the self-supervised head and of its embeddings.
      ssl_weight: of the self-supervised loss; CLIP's has weight 1.
      ssl_temperature: cosines of the views are divided by it.
    """

    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Parts of the loss": ("clip_loss", "ssl_loss"),
        "Accuracy between views": ("ssl_accuracy",),
    }

    ssl_hidden: int = 4096
    ssl_dim: int = 256
    ssl_weight: float = 1.0
    ssl_temperature: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "ssl_hidden", "ssl_dim")
        check_at_least(self, 0, "ssl_weight")
        if not self.ssl_temperature > 0:
            raise UserError(f"ssl_temperature={self.ssl_temperature} must be above 0")

    def inputs(self) -> Inputs:
        """CLIP's image and caption, and two further views of the image."""
        view = Image(self.image.image_size, self.pixels, view="ssl")
        return {**super().inputs(), **dict.fromkeys(VIEWS, view)}

    def init(self, rngs: nnx.Rngs) -> SLIP:
        """The model, freshly initialized."""
        return SLIP(self, rngs=rngs)

    def loss(
        self, model: SLIP, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """CLIP's loss and, between the two views, SimCLR's, both over the global batch (algorithm 1)."""
        images, texts = ctx.each(clip.embed, batch)
        scale, _ = model.scale_and_bias()
        clip_loss, accuracy = softmax_contrastive(images, texts, scale, mesh=ctx.mesh)
        features = [ctx.each(_features, batch[name], salt=1 + number) for number, name in enumerate(VIEWS)]
        # Batch normalization sees the whole batch, whatever parts went through the tower.
        first, second = (unit(model.ssl_head(x, ctx)).astype(ctx.dtype) for x in features)
        ssl_loss, ssl_accuracy = nt_xent(first, second, 1 / self.ssl_temperature, mesh=ctx.mesh)
        metrics: dict[str, Any] = {"clip_loss": clip_loss, "ssl_loss": ssl_loss, "ssl_accuracy": ssl_accuracy}
        metrics |= {"batch_accuracy": accuracy, "logit_scale": scale} | clip.spreads(images, texts)
        return clip_loss + self.ssl_weight * ssl_loss, metrics


def _features(model: SLIP, images: Array, ctx: Context) -> Float[Array, "batch width"]:
    return model.features(images, ctx)
