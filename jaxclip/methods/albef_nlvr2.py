"""Statements about two images with ALBEF (Li et al. 2021, section 5, NLVR2, and appendix A, text assignment)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxclip.config import check_at_least
from jaxclip.context import SECOND_TOWER, Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs, Label, Text
from jaxclip.losses.matching import pick
from jaxclip.methods import albef_entailment
from jaxclip.methods.albef import Fusion
from jaxclip.towers.bert import seen
from jaxclip.towers.layers import TwoLayers

_ASSIGN = 5  # salt of the draws of text assignment


class PairJudge(Fusion):
    """Two blocks of fusion in place of each: one attends to the first image, one to the second (figure 5).

    The two have the same keys and values of cross-attention.
    """

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.text, method.pixels, rngs=rngs)
        self.second = nnx.clone(self.text.upper)
        del self.second.blocks.cross_kv_kernel, self.second.blocks.cross_kv_bias
        self.classifier = TwoLayers(method.text.width, method.classes, rngs=rngs)

    def judge(
        self,
        image_tokens: Float[Array, "batch images places channels"],
        tokens: Int[Array, "batch length"],
        end: Int[Array, "batch"],
        ctx: Context = Context(),
    ) -> Float[Array, "batch classes"]:
        """A score of each class for a sentence about two images, from what `image_tokens` gives for each."""
        states, mask = self.text_states(tokens, end, ctx), seen(tokens, end)
        ctx = ctx.fold(SECOND_TOWER)
        graphs, stacked = zip(*(nnx.split(part.blocks) for part in (self.text.upper, self.second)), strict=True)

        def run(x: Array, params: Any, number: Any) -> Array:
            blocks = [nnx.merge(graph, part) for graph, part in zip(graphs, params, strict=True)]
            blocks[1].cross_kv_kernel, blocks[1].cross_kv_bias = blocks[0].cross_kv_kernel, blocks[0].cross_kv_bias
            for place, block in enumerate(blocks):
                # The second has the number of a block behind all others.
                own = ctx.fold(number + place * (self.text.upper.first + self.text.upper.layers))
                x = ctx.constrain(block(x, own, mask=mask, context=image_tokens[:, place]))
            return x

        states = self.text.upper.run(run, states, stacked)
        return self.classifier(states[:, 0]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Method(albef_entailment.Method):
    """The keys of statements about two images in a config.

    Attributes:
      image, text, pixels, momentum, distillation, distillation_steps: as of `albef_entailment`.
      classes: of a statement, false and true; in pre-training 3.
      assigns_texts: the task of pre-training instead, on images with captions: whether the text is of the first image,
        of the second, or of neither.
      among: records among which the second image, or the text, is taken from, consecutive ones of the batch; 0 for all
        of it.
    """

    classes: int = 2
    assigns_texts: bool = False
    among: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "among")
        if self.assigns_texts and self.classes != 3:
            raise UserError(f"classes={self.classes} must be 3 with assigns_texts=True")

    @property
    def task(self) -> str:  # type: ignore[override]
        """Text assignment has no evaluation but its loss."""
        return "" if self.assigns_texts else "statements"

    def inputs(self) -> Inputs:
        """Two images, a statement about them, and whether it is true; in pre-training an image and its caption."""
        size, length = self.image.image_size, self.text.context_length
        if self.assigns_texts:
            return {"image": Image(size, self.pixels), "text": Text(length)}
        images = {"image": Image(size, self.pixels), "second": Image(size, self.pixels, number=1)}
        return {**images, "text": Text(length, field="question"), "label": Label()}

    def init(self, rngs: nnx.Rngs) -> PairJudge:  # type: ignore[override]
        """The model, freshly initialized."""
        return PairJudge(self, rngs=rngs)

    def source_path(self, path: str) -> str:
        """The second blocks start as the first ones do."""
        return path.replace("second/blocks/", "text/upper/blocks/")

    def loss(
        self, model: Any, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """As of `albef_entailment`."""
        return super().loss(model, self._assigned(batch, ctx) if self.assigns_texts else batch, ctx)

    def logits(self, model: Any, rows: Mapping[str, Array], ctx: Context) -> Float[Array, "batch classes"]:
        """The scores of records."""
        # Both images of a record in one batch of twice as many, side by side.
        images = jnp.stack([rows["image"], rows["second"]], axis=1)
        flat = ctx.constrain(images.reshape(-1, *images.shape[2:]))
        keys = None if ctx.keys is None else jax.vmap(lambda key: jax.random.split(key, 2))(ctx.keys).ravel()
        tokens = model.image_tokens(flat, dataclasses.replace(ctx, keys=keys))
        tokens = ctx.constrain(tokens.reshape(*images.shape[:2], *tokens.shape[1:]))
        return model.judge(tokens, rows["text"], rows["text_end"], ctx)

    def _assigned(self, batch: Mapping[str, Array], ctx: Context) -> dict[str, Array]:
        """A second image for each record, and a text of the first, of the second or of neither, each as often."""
        count = len(batch["text"])
        group = self.among or count
        if count % group or group < 3:
            raise UserError(f"method.among={group} must divide the batch of {count}, and be at least 3")
        key = jax.random.key(0) if ctx.key is None else jax.random.fold_in(ctx.key, _ASSIGN)
        places, label = jnp.arange(count) % group, jax.random.randint(key, (count,), 0, 3)
        second = (places + 1) % group

        def picked(rows: Array, index: Array) -> Array:
            return ctx.constrain(pick(rows, index, group))

        # Of neither image is the text of the record behind the second.
        text = (places + label) % group
        return {
            "image": batch["image"],
            "second": picked(batch["image"], second),
            "text": picked(batch["text"], text),
            "text_end": picked(batch["text_end"], text),
            "label": label,
        }
