"""ALBEF: Align before Fuse: Vision and Language Representation Learning with Momentum Distillation (Li et al. 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least, check_shares
from jaxclip.context import SECOND_TOWER, Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs, RecordId, Text
from jaxclip.losses.masked import mask_tokens, soft_cross_entropy, text_keys
from jaxclip.losses.matching import digests, hard_negatives, pick
from jaxclip.losses.queued import cross_entropy, similarities, softmax
from jaxclip.methods.clip import spreads
from jaxclip.towers.bert import BertConfig, WordHead, seen
from jaxclip.towers.grad_cam import grad_cam
from jaxclip.towers.layers import Linear, normalized_pixels, uniform, unit
from jaxclip.towers.momentum import Queue, follow
from jaxclip.towers.vit import ViTConfig

Images = UInt8[Array, "batch height width 3"]
Tokens = Int[Array, "batch length"]
ImageTokens = Float[Array, "batch places channels"]
TextStates = Float[Array, "batch length width"]

_ENCODE, _TEACH, _MATCH, _MASK, _DRAW = 1, 2, 3, 4, 5  # salts of the step's randomness
_TEACHER = SECOND_TOWER + 1  # folded into the keys of the copy's dropout
_LOWEST, _HIGHEST = 0.001, 0.5  # of the temperature


class Fusion(nnx.Module):
    """The image encoder, the text encoder and the multimodal encoder (figure 1).

    Args:
      image, text: their configs; the lower half of the text's encodes texts, the upper half fuses them with images.
      pixels: preprocessing.
    """

    def __init__(self, image: ViTConfig, text: BertConfig, pixels: PixelsConfig, *, rngs: nnx.Rngs):
        self.pixels = pixels
        self.image = image.init(rngs=rngs)
        self.text = text.init(rngs=rngs, context_width=image.output_width)

    def image_tokens(self, images: Images, ctx: Context = Context()) -> ImageTokens:
        """The states of the class token and the patches, in `ctx.dtype`."""
        return self.image.tokens(normalized_pixels(images, self.pixels.mean, self.pixels.std, ctx.dtype), ctx)

    def text_states(self, tokens: Tokens, end: Int[Array, "batch"], ctx: Context = Context()) -> TextStates:
        """The states of a text's tokens before fusion."""
        # Other keys than the image tower's: what dropout takes from a text is independent of its image.
        return self.text.lower_states(tokens, end, ctx.fold(SECOND_TOWER))

    def fuse(
        self, image_tokens: ImageTokens, text_states: TextStates, end: Int[Array, "batch"], ctx: Context = Context()
    ) -> TextStates:
        """The states of a text's tokens after they have attended to an image's."""
        return self.text.upper_states(text_states, end, ctx.fold(SECOND_TOWER), context=image_tokens)

    def features(self, images: Images, ctx: Context = Context()) -> Float[Array, "batch channels"]:
        """The state of the class token, in `ctx.dtype`."""
        return self.image_tokens(images, ctx)[:, 0]


class Encoders(Fusion):
    """The parts of which there is a momentum copy (section 3.2)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.text, method.pixels, rngs=rngs)
        for name, tower in (("image_projection", method.image), ("text_projection", method.text)):
            start = uniform(tower.output_width**-0.5)
            setattr(self, name, Linear(tower.output_width, method.embed_dim, kernel=start, bias=start, rngs=rngs))
        self.words = WordHead(method.text, rngs=rngs)

    def embed_image(self, tokens: ImageTokens) -> Float[Array, "batch embed"]:
        """The unit embedding of what `image_tokens` gives, float32."""
        return unit(self.image_projection(tokens[:, 0]))

    def embed_text(self, states: TextStates) -> Float[Array, "batch embed"]:
        """The unit embedding of what `text_states` gives, float32."""
        return unit(self.text_projection(states[:, 0]))

    def word_logits(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch words"]:
        """A score of each word from fused states."""
        return self.words(states, self.text.token_embedding[...])

    def encode_image(self, images: Images, ctx: Context = Context()) -> Float[Array, "batch embed"]:
        """Unit embeddings of 8-bit RGB images, float32."""
        return self.embed_image(self.image_tokens(images, ctx))

    def encode_text(
        self, tokens: Tokens, end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch embed"]:
        """Unit embeddings of token ids, float32."""
        return self.embed_text(self.text_states(tokens, end, ctx))


class ALBEF(Encoders):
    """The encoders, the head of image-text matching, and the temperature."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method, rngs=rngs)
        start = uniform(method.text.width**-0.5)
        self.matching = Linear(method.text.width, 2, kernel=start, bias=start, rngs=rngs)
        self.temperature = nnx.Param(jnp.asarray(method.temperature, jnp.float32))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Logits of pairs are scale * cosine + bias."""
        return 1 / self.temperature[...], jnp.zeros((), jnp.float32)

    def match(
        self, image_tokens: ImageTokens, text_states: TextStates, end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch"]:
        """The log odds that an image and a text are a pair, from what `image_tokens` and `text_states` give."""
        return self._log_odds(self.fuse(image_tokens, text_states, end, ctx))

    def word_places(
        self, images: Images, tokens: Tokens, end: Int[Array, "batch"], ctx: Context = Context()
    ) -> Float[Array, "batch length patches"]:
        """Which patches each token made the pair match by: Grad-CAM (figure 4) in the third of six layers of fusion.

        Values are at least 0, and 0 for tokens behind the end.
        """
        mask = seen(tokens, end)
        states, context = self.text_states(tokens, end, ctx), self.image_tokens(images, ctx)
        # Of the last layer only the first token's weights matter to the score.
        layer = (self.text.upper.layers - 1) // 2
        found = grad_cam(self.text.upper, layer, self._log_odds, states, mask, context, ctx)
        return jnp.where(mask[..., None], found[..., 1:], 0)

    def _log_odds(self, fused: TextStates) -> Float[Array, "batch"]:
        logits = self.matching(fused[:, 0]).astype(jnp.float32)
        return logits[:, 1] - logits[:, 0]


class Memory(nnx.Module):
    """The momentum copy, and the queues of its embeddings."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        self.slow = Encoders(method, rngs=rngs)
        if method.queue:
            self.images = Queue(method.queue, method.embed_dim, rngs=rngs)
            self.texts = Queue(method.queue, method.embed_dim, rngs=rngs)
            if method.positives == "record":
                self.records = Queue(method.queue, 1, rngs=None)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """ALBEF's keys in a config.

    Attributes:
      image: the image encoder.
      text: the text encoder, which is the lower half of a BERT, and the multimodal encoder, which is the upper half.
      embed_dim: width of the space of the image-text contrastive loss.
      pixels: preprocessing.
      mask_id: of the vocabulary's mask token; -1 for no masked language modeling, as in fine-tuning for retrieval.
      queue: embeddings of earlier batches that each side is compared with; a multiple of the batch size, or 0 for none.
      momentum: of the copy.
      temperature: at the beginning; it is learned. Give it a learning rate of its own if the others' is large.
      distillation: alpha, the share of the momentum copy's predictions in the targets (section 3.2).
      distillation_steps: steps in which alpha grows from 0; the paper's are those of the first epoch.
      teacher_dropout: whether dropout applies to the momentum copy, as in the reference (salesforce/ALBEF).
      negatives_among: records among which hard negatives are drawn, consecutive ones of the batch; 0 for all of it. In
        the paper those of a GPU. With whole groups on each device no tokens are moved.
      positives: "pair", a text is a positive of its own image alone; "record", of all embeddings with the record's
        number, for images with several captions (fine-tuning; salesforce/ALBEF, models/model_retrieval.py).
    """

    image: ViTConfig
    text: BertConfig = BertConfig()
    embed_dim: int = 256
    pixels: PixelsConfig = PixelsConfig()
    mask_id: int = 103
    queue: int = 65_536
    momentum: float = 0.995
    temperature: float = 0.07
    distillation: float = 0.4
    distillation_steps: int = 0
    teacher_dropout: bool = False
    negatives_among: int = 0
    positives: Literal["pair", "record"] = "pair"

    task: ClassVar[str] = "two_stage_retrieval"
    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Parts of the loss": ("contrastive_loss", "matching_loss", "masked_loss"),
        "Pairs told from hard negatives, masked words found": ("matching_accuracy", "masked_accuracy"),
        "Temperature": ("temperature",),
    }

    def __post_init__(self):
        check_at_least(self, 1, "embed_dim")
        check_at_least(self, 0, "queue", "distillation_steps", "negatives_among")
        check_at_least(self, -1, "mask_id")
        check_shares(self, "momentum", "distillation")
        if not _LOWEST <= self.temperature <= _HIGHEST:
            raise UserError(f"temperature={self.temperature} must be at least {_LOWEST} and at most {_HIGHEST}")
        if self.image.pool != "class":
            raise UserError(f"image.pool={self.image.pool!r} must be 'class': the class token is what is projected")
        if self.image.patch_drop:
            raise UserError("image.patch_drop must be 0: all losses share the image's tokens")
        if self.text.lower_layers == 0:
            raise UserError("text.lower must be above 0 (-1 for half): the lower layers encode texts")

    def inputs(self) -> Inputs:
        """One image and one caption."""
        pair: Inputs = {"image": Image(self.image.image_size, self.pixels), "text": Text(self.text.context_length)}
        return {**pair, "record": RecordId()} if self.positives == "record" else pair

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the vocabulary is too large, or has another mask token."""
        methods.check_vocabulary(tokenizer, self.text.vocab_size)
        if self.mask_id != -1 and tokenizer.mask_id != self.mask_id:
            has = "no mask token" if tokenizer.mask_id is None else f"the mask token {tokenizer.mask_id}"
            raise UserError(f"method.mask_id={self.mask_id}, but the vocabulary has {has}")

    def init(self, rngs: nnx.Rngs) -> ALBEF:
        """The model, freshly initialized."""
        return ALBEF(self, rngs=rngs)

    def memory(self, model: nnx.Module, rngs: nnx.Rngs) -> Memory:
        """The momentum copy and the queues."""
        return Memory(self, rngs=rngs)

    def loss(
        self, model: ALBEF, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of the image-text contrastive, the matching and the masked language modeling loss (equation 5)."""
        if ctx.train:
            follow(ctx.memory.slow, model, self.momentum, ctx.step)
        ours = ctx.each(_encode, batch, salt=_ENCODE)
        slow = jax.lax.stop_gradient(ctx.each(self._encode_slowly, batch, salt=_TEACH))
        alpha = self.alpha(ctx)
        scale, _ = model.scale_and_bias()
        contrastive = self._contrastive(scale, ours, slow, batch, alpha, ctx)
        matching, hits = self._matching(model, ours, batch, ctx)
        losses = {"contrastive_loss": contrastive, "matching_loss": matching}
        metrics = {"matching_accuracy": hits, "temperature": model.temperature[...], "alpha": alpha}
        if self.mask_id != -1:
            rows = {"text": batch["text"], "end": batch["text_end"], "tokens": ours["tokens"], "slow": slow["tokens"]}
            found = ctx.each(self._masked, rows | {"alpha": jnp.broadcast_to(alpha, len(batch["text"]))}, salt=_MASK)
            sums, hits, counts = (jnp.sum(part) for part in found)
            losses["masked_loss"] = sums / jnp.maximum(counts, 1)
            metrics["masked_accuracy"] = hits / jnp.maximum(counts, 1)
        spread = spreads(ours["image"], ours["text"])
        return sum(losses.values(), jnp.zeros(())), losses | metrics | spread

    def clamp(self, params: dict[str, Any]) -> dict[str, Any]:
        """The temperature within the bounds of the reference."""
        return params | {"temperature": jnp.clip(params["temperature"], _LOWEST, _HIGHEST)}

    def alpha(self, ctx: Context) -> Float[Array, ""]:
        """The momentum copy's share of the targets; all of it in evaluation."""
        return ramp(self.distillation, self.distillation_steps, ctx)

    def _contrastive(
        self,
        scale: Float[Array, ""],
        ours: Mapping[str, Array],
        slow: Mapping[str, Array],
        batch: Mapping[str, Array],
        alpha: Float[Array, ""],
        ctx: Context,
    ) -> Float[Array, ""]:
        """Image-text contrastive learning with momentum distillation (equation 6)."""
        memory, losses = ctx.memory, []
        queues = {"image": memory.images.queue[...], "text": memory.texts.queue[...]} if self.queue else {}
        for name, other in (("image", "text"), ("text", "image")):
            keys = [slow[other], *([jax.lax.stop_gradient(queues[other])] if self.queue else [])]
            targets = self._own(batch, ctx)
            if self.distillation:
                by_slow = [similarities(slow[name], part, ctx.mesh) * scale for part in keys]
                soft = softmax(jax.lax.stop_gradient(by_slow))
                targets = [(1 - alpha) * own + alpha * part for own, part in zip(targets, soft, strict=True)]
            logits = [similarities(ours[name], part, ctx.mesh) * scale for part in keys]
            losses.append(jnp.mean(cross_entropy(logits, targets)))
        if ctx.train and self.queue:
            memory.images.push(slow["image"])
            memory.texts.push(slow["text"])
            if self.positives == "record":
                memory.records.push(batch["record"][:, None])
        return sum(losses, jnp.zeros(())) / 2

    def _own(self, batch: Mapping[str, Array], ctx: Context) -> list[Array]:
        """Of each record the probabilities of the keys that are its own, in the batch and in the queue."""
        count = len(batch["text"])
        own = [jnp.eye(count), *([jnp.zeros((count, self.queue))] if self.queue else [])]
        if self.positives == "record":
            records = batch["record"]
            own[0] = (records[:, None] == records).astype(jnp.float32)
            # The numbers of another set, as in validation, say nothing about those in the queue.
            if self.queue and ctx.train:
                own[1] = (records[:, None] == ctx.memory.records.queue[:, 0]).astype(jnp.float32)
        total = sum((jnp.sum(part, axis=1, keepdims=True) for part in own), jnp.zeros(()))
        return [part / total for part in own]

    def _matching(
        self,
        model: ALBEF,
        ours: Mapping[str, Array],
        batch: Mapping[str, Array],
        ctx: Context,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The loss of telling pairs from hard negatives (equation 4), and how many of them are told."""
        end, group = batch["text_end"], self.negatives_among or len(batch["text"])
        if not ctx.train:
            group = math.gcd(group, len(end))  # The batch of a small set is smaller than in training.
        if len(end) % group:
            raise UserError(f"method.negatives_among={group} must divide the batch of {len(end)}")
        # Captions occur more than once, and an image's own caption is not wrong because another image has it, too.
        same = batch["record"] if self.positives == "record" else digests(batch["text"])
        key = jax.random.key(0) if ctx.key is None else jax.random.fold_in(ctx.key, _DRAW)
        scale, _ = jax.lax.stop_gradient(model.scale_and_bias())
        to_draw = jax.lax.stop_gradient((ours["image"], ours["text"]))
        drawn = hard_negatives(*to_draw, scale, same, group, key)
        tokens, states, wrong_end = (
            ctx.constrain(pick(rows, index, group))
            for rows, index in ((ours["tokens"], drawn.image), (ours["states"], drawn.text), (end, drawn.text))
        )
        pairs = {
            "tokens": (ours["tokens"], tokens, ours["tokens"]),
            "states": (ours["states"], ours["states"], states),
            "end": (end, end, wrong_end),
        }
        logits = ctx.each(_match, pairs, salt=_MATCH)
        counts = jnp.stack([jnp.ones_like(end), drawn.exist, drawn.exist], axis=1).astype(jnp.float32)
        labels = jnp.broadcast_to(jnp.array([1, 0, 0]), counts.shape)
        losses = soft_cross_entropy(logits, labels)
        hits = jnp.argmax(logits, axis=-1) == labels
        return tuple(jnp.sum(part * counts) / jnp.sum(counts) for part in (losses, hits))  # type: ignore[return-value]

    def _encode_slowly(self, _: Any, rows: Mapping[str, Array], ctx: Context) -> dict[str, Array]:
        return _encode(ctx.memory.slow, rows, ctx if self.teacher_dropout else dataclasses.replace(ctx, keys=None))

    def _masked(self, model: ALBEF, rows: Mapping[str, Array], ctx: Context) -> tuple[Array, Array, Array]:
        """Of each text the sum of its masked words' losses (equation 7), how many are found, how many there are."""
        tokens, end = rows["text"], rows["end"]
        # In validation the same for a text whatever else its batch holds.
        keys = text_keys(tokens) if ctx.keys is None else ctx.fold(_TEACHER + 1).keys
        assert keys is not None
        text = mask_tokens(tokens, end, keys, mask_id=self.mask_id, vocab_size=self.text.vocab_size)

        def logits(encoders: Encoders, image_tokens: Array, ctx: Context) -> Array:
            fused = encoders.fuse(image_tokens, encoders.text_states(text.tokens, end, ctx), end, ctx)
            return encoders.word_logits(jnp.take_along_axis(fused, text.slots[..., None], axis=1))

        found, teacher = logits(model, rows["tokens"], ctx), None
        if self.distillation:
            slowly = ctx.fold(_TEACHER) if self.teacher_dropout else dataclasses.replace(ctx, keys=None)
            teacher = logits(ctx.memory.slow, rows["slow"], slowly)
        losses = soft_cross_entropy(found, text.labels, teacher, rows["alpha"][:, None])
        hits = jnp.argmax(found, axis=-1) == text.labels
        return tuple(jnp.sum(part * text.weights, axis=1) for part in (losses, hits, text.weights))  # type: ignore


def ramp(highest: float, steps: int, ctx: Context) -> Float[Array, ""]:
    """A share that grows linearly from 0 over the first steps, and is the highest in evaluation."""
    share = jnp.ones(()) if ctx.step is None else (ctx.step + 1) / max(1, steps)
    return highest * jnp.minimum(share, 1.0)


def _encode(encoders: Encoders, rows: Mapping[str, Array], ctx: Context) -> dict[str, Array]:
    """The image's tokens and the text's states, which all losses share, and the embeddings of both."""
    tokens = encoders.image_tokens(rows["image"], ctx)
    states = encoders.text_states(rows["text"], rows["text_end"], ctx)
    image, text = encoders.embed_image(tokens), encoders.embed_text(states)
    return {"tokens": tokens, "states": states, "image": image, "text": text}


def _match(model: ALBEF, pairs: Mapping[str, tuple[Array, ...]], ctx: Context) -> Float[Array, "batch pairs 2"]:
    """The logits of each record's pairs."""
    # Stacked behind the axis of records, so that each device keeps the pairs of its own.
    rows = {name: jnp.stack(parts, axis=1) for name, parts in pairs.items()}
    batch, count = rows["end"].shape
    rows = {name: ctx.constrain(value.reshape(-1, *value.shape[2:])) for name, value in rows.items()}
    keys = None if ctx.keys is None else jax.vmap(lambda key: jax.random.split(key, count))(ctx.keys).ravel()
    fused = model.fuse(rows["tokens"], rows["states"], rows["end"], dataclasses.replace(ctx, keys=keys))
    return model.matching(fused[:, 0]).astype(jnp.float32).reshape(batch, count, 2)
