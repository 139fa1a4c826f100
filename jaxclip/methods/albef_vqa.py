"""Visual question answering with ALBEF: a decoder that ranks answers (Li et al. 2021, section 5 and appendix A)."""

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
from jaxclip.errors import UserError
from jaxclip.inputs import Answers, Image, Inputs, Text
from jaxclip.losses.captioning import vocabulary_cross_entropy
from jaxclip.losses.masked import soft_cross_entropy
from jaxclip.methods.albef import Fusion, ramp
from jaxclip.towers.bert import BertConfig, WordHead, seen
from jaxclip.towers.momentum import Copied, follow
from jaxclip.towers.vit import ViTConfig

_AT_A_TIME = 8  # answers of a question that are scored at once


class Answerer(Fusion):
    """The encoders, and a decoder with their multimodal half's layers that attends to the fused question."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.text, method.pixels, rngs=rngs)
        self.decoder = method.decoder.init(rngs=rngs, context_width=method.text.width)
        self.words = WordHead(method.text, rngs=rngs)

    def question_states(
        self,
        image_tokens: Float[Array, "batch places channels"],
        tokens: Int[Array, "batch length"],
        end: Int[Array, "batch"],
        ctx: Context = Context(),
    ) -> Float[Array, "batch length width"]:
        """The states of a question's tokens after they have attended to the image."""
        return self.fuse(image_tokens, self.text_states(tokens, end, ctx), end, ctx)

    def answer_states(
        self,
        states: Float[Array, "batch length width"],
        end: Int[Array, "batch"],
        answers: Int[Array, "batch count words"],
        ends: Int[Array, "batch count"],
        ctx: Context = Context(),
    ) -> Float[Array, "batch count words width"]:
        """The decoder's states for several answers to each question; each predicts the token behind it."""
        batch, count, words = answers.shape
        keys = None if ctx.keys is None else jax.vmap(lambda key: jax.random.split(key, count))(ctx.keys).ravel()
        each = dataclasses.replace(ctx, keys=keys)

        def repeated(x: Array) -> Array:
            return ctx.constrain(jnp.repeat(x, count, axis=0))

        flat, last = answers.reshape(-1, words), ends.reshape(-1)
        x = self.decoder.upper_states(
            self.decoder.lower_states(flat, last, each),
            last,
            each,
            context=repeated(states),
            context_mask=repeated(seen(states, end)),
            causal=True,
        )
        return x.reshape(batch, count, words, -1)

    def word_logits(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """A score of each word from the decoder's states."""
        return self.words(states, self.decoder.token_embedding[...])

    def answer(
        self,
        image_tokens: Float[Array, "batch places channels"],
        tokens: Int[Array, "batch length"],
        end: Int[Array, "batch"],
        answers: Int[Array, "answers words"],
        ends: Int[Array, "answers"],
        ctx: Context = Context(),
        *,
        k: int,
    ) -> Int[Array, "batch"]:
        """Of a list of answers the most probable one, by its place.

        The k answers with the most probable first tokens are compared by the probability of the whole answer.

        Args:
          image_tokens: of `image_tokens`.
          tokens, end: the questions.
          answers, ends: the answers, with start and end tokens.
          ctx: the devices and the precision.
          k: at most as many as there are answers.
        """
        states = self.question_states(image_tokens, tokens, end, ctx)
        starts = jnp.broadcast_to(answers[:1, None, :1], (len(tokens), 1, 1))
        begun = self.answer_states(states, end, starts, jnp.zeros((len(tokens), 1), jnp.int32), ctx)
        first = jax.nn.log_softmax(self.word_logits(begun[:, 0, 0]))
        _, chosen = jax.lax.top_k(first[:, answers[:, 1]], k)
        parts = -(-k // _AT_A_TIME)
        # The last answer stands in for those that are missing.
        padded = jnp.take(chosen, jnp.minimum(jnp.arange(parts * _AT_A_TIME), k - 1), axis=1)

        def score(places: Int[Array, "batch some"]) -> Float[Array, "batch some"]:
            own, own_ends = answers[places], ends[places]
            found = self.answer_states(states, end, own, own_ends, ctx)[:, :, :-1]
            hidden = self.words.hidden(found.reshape(len(tokens), -1, found.shape[-1]))
            targets = own[:, :, 1:].reshape(len(tokens), -1)
            table, bias = self.decoder.token_embedding[...], self.words.bias[...]
            losses = vocabulary_cross_entropy(hidden, table, bias, targets, mesh=ctx.mesh)
            counts = jnp.arange(own.shape[2] - 1) < own_ends[..., None]
            return -jnp.sum(losses.reshape(counts.shape) * counts, axis=2)

        scores = jax.lax.map(score, padded.reshape(len(tokens), parts, -1).swapaxes(0, 1))
        best = jnp.argmax(scores.swapaxes(0, 1).reshape(len(tokens), -1), axis=1)
        return jnp.take_along_axis(padded, best[:, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """The keys of visual question answering in a config.

    Attributes:
      image, text, pixels: as of `albef`, from whose weights a run starts.
      answer_length: tokens of an answer, start and end included.
      answers: how many of a question's answers are learned, the heaviest.
      momentum, distillation, distillation_steps: as of `albef`.
    """

    image: ViTConfig
    text: BertConfig = BertConfig()
    pixels: PixelsConfig = PixelsConfig()
    answer_length: int = 8
    answers: int = 4
    momentum: float = 0.995
    distillation: float = 0.4
    distillation_steps: int = 0

    task: ClassVar[str] = "question_answering"
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"Words of answers found": ("word_accuracy",)}

    def __post_init__(self):
        check_at_least(self, 1, "answers")
        check_at_least(self, 3, "answer_length")
        check_at_least(self, 0, "distillation_steps")
        check_shares(self, "momentum", "distillation")

    @property
    def decoder(self) -> BertConfig:
        """As many layers as the multimodal half has."""
        layers = self.text.layers - self.text.lower_layers
        return dataclasses.replace(self.text, lower=0, layers=layers, context_length=self.answer_length)

    def inputs(self) -> Inputs:
        """One image, a question about it, and answers."""
        question = Text(self.text.context_length, field="question")
        answers = Answers(self.answer_length, self.answers)
        return {"image": Image(self.image.image_size, self.pixels), "text": question, "answers": answers}

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the vocabulary is too large, or has no start or end token."""
        methods.check_vocabulary(tokenizer, self.text.vocab_size)
        if tokenizer.start_id is None or tokenizer.end_id is None:
            raise UserError("the vocabulary has no start or no end token, which answers need")

    def init(self, rngs: nnx.Rngs) -> Answerer:
        """The model, freshly initialized."""
        return Answerer(self, rngs=rngs)

    def memory(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """The momentum copy, unless nothing is distilled."""
        return Copied(model) if self.distillation else nnx.Module()

    def source_path(self, path: str) -> str:
        """The decoder starts as the multimodal half, and with the same words."""
        return path.replace("decoder/", "text/", 1) if path.startswith("decoder/") else path

    def loss(
        self, model: Any, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The negative log-likelihood of a question's answers by their weights, the mean over questions."""
        if self.distillation and ctx.train:
            follow(ctx.memory.slow, model, self.momentum, ctx.step)
        alpha = ramp(self.distillation, self.distillation_steps, ctx)
        rows = {**batch, "alpha": jnp.broadcast_to(alpha, len(batch["text"]))}
        losses, hits, counts = ctx.each(self._answer_losses, rows)
        return jnp.mean(losses), {"word_accuracy": jnp.sum(hits) / jnp.maximum(jnp.sum(counts), 1)}

    def _answer_losses(self, model: Answerer, rows: Mapping[str, Array], ctx: Context) -> tuple[Array, Array, Array]:
        """Of each question the weighted loss, how many words of its answers are predicted, and how many there are."""
        answers, ends, weights = rows["answers"], rows["answers_end"], rows["answers_weight"]

        def logits(model: Answerer, ctx: Context) -> Float[Array, "batch count words vocabulary"]:
            tokens = model.image_tokens(rows["image"], ctx)
            # Other keys than the encoders': their blocks have the lower numbers.
            states = model.question_states(tokens, rows["text"], rows["text_end"], ctx)
            found = model.answer_states(states, rows["text_end"], answers, ends, ctx.fold(self.text.layers + 1))
            return model.word_logits(found[:, :, :-1])

        found, teacher = logits(model, ctx), None
        if self.distillation:
            teacher = jax.lax.stop_gradient(logits(ctx.memory.slow, dataclasses.replace(ctx, keys=None)))
        counts = (jnp.arange(answers.shape[2] - 1) < ends[..., None]) * (weights > 0)[..., None]
        labels = answers[:, :, 1:]
        losses = soft_cross_entropy(found, labels, teacher, rows["alpha"][:, None, None]) * counts
        hits = (jnp.argmax(found, axis=-1) == labels) * counts
        of_answers = jnp.sum(losses, axis=2) * weights
        return jnp.sum(of_answers, axis=1), jnp.sum(hits, axis=(1, 2)), jnp.sum(counts, axis=(1, 2))
