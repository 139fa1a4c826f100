"""Visual entailment with ALBEF: whether an image entails a sentence (Li et al. 2021, section 5, SNLI-VE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least, check_shares
from jaxclip.context import Context
from jaxclip.inputs import Image, Inputs, Label, Text
from jaxclip.losses.masked import soft_cross_entropy
from jaxclip.methods.albef import Fusion, ramp
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.layers import TwoLayers
from jaxclip.towers.momentum import Copied, follow
from jaxclip.towers.vit import ViTConfig

_JUDGE = 1  # salt of the step's randomness


class Judge(Fusion):
    """The encoders, and a classifier of what a sentence's first token has become."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.text, method.pixels, rngs=rngs)
        self.classifier = TwoLayers(method.text.width, method.classes, rngs=rngs)

    def judge(
        self,
        image_tokens: Float[Array, "batch images places channels"],
        tokens: Int[Array, "batch length"],
        end: Int[Array, "batch"],
        ctx: Context = Context(),
    ) -> Float[Array, "batch classes"]:
        """A score of each class for a sentence about an image, from what `image_tokens` gives; one image each."""
        fused = self.fuse(image_tokens[:, 0], self.text_states(tokens, end, ctx), end, ctx)
        return self.classifier(fused[:, 0]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """The keys of visual entailment in a config.

    Attributes:
      image, text, pixels: as of `albef`, from whose weights a run starts.
      classes: how many there are: contradiction, neutral, entailment.
      momentum: of the copy.
      distillation, distillation_steps: the share of the copy's predictions in the targets, and the steps in which it
        grows from 0; it does not grow in the reference (salesforce/ALBEF, VE.py).
    """

    image: ViTConfig
    text: BertConfig = BertConfig()
    pixels: PixelsConfig = PixelsConfig()
    classes: int = 3
    momentum: float = 0.995
    distillation: float = 0.4
    distillation_steps: int = 0

    task: ClassVar[str] = "statements"
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"Sentences judged rightly": ("accuracy",)}

    def __post_init__(self):
        check_at_least(self, 2, "classes")
        check_at_least(self, 0, "distillation_steps")
        check_shares(self, "momentum", "distillation")

    def inputs(self) -> Inputs:
        """One image, a sentence about it, and its class."""
        sentence = Text(self.text.context_length, field="question")
        return {"image": Image(self.image.image_size, self.pixels), "text": sentence, "label": Label()}

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the vocabulary has more tokens than the text encoder."""
        methods.check_vocabulary(tokenizer, self.text.vocab_size)

    def init(self, rngs: nnx.Rngs) -> Judge:
        """The model, freshly initialized."""
        return Judge(self, rngs=rngs)

    def memory(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """The momentum copy, unless nothing is distilled."""
        return Copied(model) if self.distillation else nnx.Module()

    def loss(
        self, model: Any, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The cross-entropy of the classes, of which the copy's predictions have a share (section 3.2)."""
        logits = ctx.each(self.logits, batch, salt=_JUDGE)
        teacher = None
        if self.distillation:
            if ctx.train:
                follow(ctx.memory.slow, model, self.momentum, ctx.step)
            teacher = jax.lax.stop_gradient(ctx.each(self._slow_logits, batch))
        known = (batch["label"] >= 0) & (batch["label"] < self.classes)
        labels, counts = jnp.where(known, batch["label"], 0), known.astype(jnp.float32)
        losses = soft_cross_entropy(logits, labels, teacher, ramp(self.distillation, self.distillation_steps, ctx))
        hits = jnp.argmax(logits, axis=1) == labels
        loss, accuracy = (jnp.sum(part * counts) / jnp.maximum(jnp.sum(counts), 1) for part in (losses, hits))
        return loss, {"accuracy": accuracy}

    def logits(self, model: Any, rows: Mapping[str, Array], ctx: Context) -> Float[Array, "batch classes"]:
        """The scores of records."""
        tokens = model.image_tokens(rows["image"], ctx)[:, None]
        return model.judge(tokens, rows["text"], rows["text_end"], ctx)

    def _slow_logits(self, _: Any, rows: Mapping[str, Array], ctx: Context) -> Float[Array, "batch classes"]:
        return self.logits(ctx.memory.slow, rows, dataclasses.replace(ctx, keys=None))
