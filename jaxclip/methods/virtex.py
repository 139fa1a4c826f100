"""VirTex: Learning Visual Representations from Textual Annotations (Desai and Johnson 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jaxclip import methods
from jaxclip.config import PixelsConfig, check_at_least
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.inputs import Image, Inputs, Tags, Text
from jaxclip.losses.captioning import reversed_texts, vocabulary_cross_entropy
from jaxclip.losses.masked import mask_tokens, text_keys
from jaxclip.towers.backbone import Backbone
from jaxclip.towers.decoder import Decoder, DecoderConfig, TokenEmbedding
from jaxclip.towers.generation import beam_search, nucleus_sample
from jaxclip.towers.layers import Linear, normal, zeros
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.vit import ViTConfig

Images = UInt8[Array, "batch height width 3"]
Pretext = Literal["bicaptioning", "captioning", "masked_lm", "token_classification", "multilabel_classification"]

# Of the tokens that are chosen, as in kdexd/virtex, data/datasets/captioning.py.
_MASKED, _REPLACED = 0.85, 0.10


class Classifier(Backbone):
    """A linear map from the pooled features to a score of each word, or of each tag (section 4.2)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.pixels, rngs=rngs)
        outputs = method.tags if method.pretext == "multilabel_classification" else method.text.vocab_size
        self.classifier = Linear(method.image.output_width, outputs, kernel=normal(0.01), bias=zeros, rngs=rngs)


class TextualModel(Backbone):
    """The backbone and a transformer over a caption that attends to its grid of features (section 3)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method.image, method.pixels, rngs=rngs)
        self.layers = method.text.layers
        self.projection = Linear(
            method.image.output_width, method.text.width, kernel=normal(method.text.init), bias=zeros, rngs=rngs
        )
        self.embedding = TokenEmbedding(method.text, rngs=rngs)
        self.decoder = Decoder(method.text, rngs=rngs)
        self.output_bias = nnx.Param(jnp.zeros((method.text.vocab_size,), jnp.float32))

    def tokens(self, images: Images, ctx: Context = Context()) -> Float[Array, "batch places channels"]:
        """What decoders attend to: the image tower's grid, projected."""
        # Dropout of its own: the decoders' blocks have the numbers up to 2 * layers, their embeddings the next two.
        ctx = ctx.fold(2 * self.layers + 3)
        return self.projection(self.image.tokens(self.normalized(images, ctx), ctx))

    def losses(
        self, states: Float[Array, "batch tokens width"], targets: Int[Array, "batch tokens"], ctx: Context
    ) -> Float[Array, "batch tokens"]:
        """The cross-entropy of each token; the output matrix is the token embedding (section 3)."""
        table = self.embedding.token_embedding[...]
        return vocabulary_cross_entropy(states, table, self.output_bias[...], targets, mesh=ctx.mesh)


class Captioner(TextualModel):
    """One decoder from left to right and, unless it is left out, another from right to left (figure 3)."""

    def __init__(self, method: Method, *, rngs: nnx.Rngs):
        super().__init__(method, rngs=rngs)
        self.length = method.text.context_length
        self.bidirectional = method.pretext == "bicaptioning"
        if self.bidirectional:
            self.backward_decoder = Decoder(method.text, rngs=rngs, first=method.text.layers)

    def caption(
        self,
        images: Images,
        ctx: Context = Context(),
        *,
        start: int,
        end: int,
        words: int | None = None,
        beams: int = 5,
        per_beam: int = 2,
        nucleus: float = 0.0,
        seed: int = 0,
    ) -> Int[Array, "batch length"]:
        """Captions as token ids, filled up with the end token; a word is never repeated immediately (section 4.4).

        Args:
          images: uint8.
          ctx: the devices and the precision.
          start, end: ids of the start and end tokens.
          words: size of the vocabulary; None for as many as there are rows.
          beams, per_beam: of the beam search; see `towers.generation`.
          nucleus: if above 0, captions are drawn at random instead, from the most probable tokens that have this share.
          seed: of the draws. A caption depends on it and on its image alone.

        Raises:
          UserError: a number is out of its bounds.
        """
        if not (beams >= 1 and per_beam >= 1 and 0 <= nucleus <= 1 and seed >= 0):
            raise UserError(
                f"beams={beams}, per_beam={per_beam}, nucleus={nucleus}, seed={seed}: beams must be at least 1, the "
                "nucleus at least 0 (for a beam search) and at most 1, the seed at least 0"
            )
        context = self.tokens(images, ctx)
        limits: Any = {"start": start, "end": end, "length": self.length, "words": words}
        if nucleus:
            pixels = images.reshape(len(images), -1).astype(jnp.uint32)
            digests = jnp.sum(pixels * (2 * jnp.arange(pixels.shape[1], dtype=jnp.uint32) + 1), axis=1)
            keys = jax.vmap(lambda digest: jax.random.fold_in(jax.random.key(seed), digest))(digests)
            cache = self.decoder.begin(context, 1, self.length)
            return nucleus_sample(self._step(ctx), cache, keys, share=nucleus, **limits)
        cache = self.decoder.begin(context, beams, self.length)
        found, _ = beam_search(self._step(ctx), cache, len(images), beams=beams, per_beam=per_beam, **limits)
        return found

    def attention(
        self, images: Images, tokens: Int[Array, "batch length"], ctx: Context = Context()
    ) -> Float[Array, "batch words places"]:
        """How much each token's prediction attends to each place of the image, the mean over the last layer's heads.

        Args:
          images: uint8.
          tokens: captions, such as `caption` gives.
          ctx: the devices and the precision.

        Returns:
          Of the tokens but the first, length - 1 of them; the sum over places is 1.
        """
        cache = self.decoder.begin(self.tokens(images, ctx), 1, self.length)

        def step(cache: Any, given: tuple) -> tuple[Any, Array]:
            token, place = given
            x = self.embedding.at(token[:, None], place, ctx)
            _, cache, weights = self.decoder.step(x, cache, place)
            return cache, weights[:, 0]

        _, weights = jax.lax.scan(step, cache, (tokens.T[:-1], jnp.arange(self.length - 1)))
        return weights.swapaxes(0, 1)

    def states(
        self, tokens: Int[Array, "batch length"], end: Int[Array, "batch"], context: Array, ctx: Context
    ) -> dict[str, tuple[Array, Array]]:
        """By direction, the states that predict the next tokens, [batch, length - 1, width], and these tokens."""
        seen = jnp.arange(tokens.shape[1] - 1) <= end[:, None]
        found = {}
        for direction in ("forward", "backward") if self.bidirectional else ("forward",):
            forward = direction == "forward"
            text = tokens if forward else reversed_texts(tokens, end)
            decoder = self.decoder if forward else self.backward_decoder
            # Numbers up to 2 * layers are the blocks' own.
            x = self.embedding(text[:, :-1], seen, ctx.fold(2 * self.layers + (1 if forward else 2)))
            found[direction] = decoder(x, ctx, causal=True, context=context), text[:, 1:]
        return found

    def _step(self, ctx: Context) -> Any:
        def step(tokens: Array, cache: Any, place: Array) -> tuple[Array, Any]:
            x, cache, _ = self.decoder.step(self.embedding.at(tokens, place, ctx), cache, place)
            table = self.embedding.token_embedding[...].astype(x.dtype)
            logits = jnp.einsum("bkw,vw->bkv", x, table, preferred_element_type=jnp.float32)
            return logits + self.output_bias[...], cache

        return step


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """VirTex's keys in a config.

    Attributes:
      image: the backbone.
      text: the decoders, and how long captions are.
      pixels: preprocessing; VirTex's is ImageNet's.
      pretext: what is learned from captions: "bicaptioning" predicts them in both directions; "captioning" from left to
        right; "masked_lm" predicts masked words; "token_classification" predicts which words a caption has;
        "multilabel_classification" predicts the tags of a record instead of its caption (table 2).
      mask_id: id of the vocabulary's mask token, for "masked_lm".
      tags: how many there are, for "multilabel_classification".
    """

    image: ResNetConfig | ViTConfig
    text: DecoderConfig = DecoderConfig()
    pixels: PixelsConfig = PixelsConfig()
    pretext: Pretext = "bicaptioning"
    mask_id: int = 3
    tags: int = 80

    charts: ClassVar[Mapping[str, tuple[str, ...]]] = {"Parts of the loss": ("forward_loss", "backward_loss")}

    def __post_init__(self):
        check_at_least(self, 1, "tags")
        check_at_least(self, 0, "mask_id")
        if self._reads_tokens and getattr(self.image, "pool", "class") == "map":
            raise UserError("image.pool='map' would not be trained by captions, which read its tokens; use 'class'")

    @property
    def task(self) -> str:  # type: ignore[override]
        """Captions are evaluated as such; for what else is learned, a recipe has to name an evaluation."""
        return "captioning" if self._captions else ""

    @property
    def _reads_tokens(self) -> bool:
        return self._captions or self.pretext == "masked_lm"

    @property
    def _captions(self) -> bool:
        return self.pretext in ("bicaptioning", "captioning")

    def inputs(self) -> Inputs:
        """One image, and one caption or its tags."""
        image = {"image": Image(self.image.image_size, self.pixels)}
        if self.pretext == "multilabel_classification":
            return {**image, "tags": Tags(self.tags)}
        return {**image, "text": Text(self.text.context_length)}

    def check(self, tokenizer: Any) -> None:
        """Raises UserError if the vocabulary is too large, or lacks a token that is needed."""
        methods.check_vocabulary(tokenizer, self.text.vocab_size)
        if tokenizer.start_id is None or tokenizer.end_id is None:
            raise UserError(
                "the vocabulary has no start or no end token, which VirTex needs; train one with "
                "config.data.vocabulary_form=sentencepiece"
            )
        if self.pretext == "masked_lm" and tokenizer.mask_id != self.mask_id:
            has = "no mask token" if tokenizer.mask_id is None else f"the mask token {tokenizer.mask_id}"
            raise UserError(f"method.mask_id={self.mask_id}, but the vocabulary has {has}")

    def init(self, rngs: nnx.Rngs) -> Backbone:
        """The model, freshly initialized."""
        if self._captions:
            return Captioner(self, rngs=rngs)
        return (TextualModel if self.pretext == "masked_lm" else Classifier)(self, rngs=rngs)

    def loss(
        self, model: Any, batch: Mapping[str, Array], ctx: Context
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean loss of a token, or for classification of an image, over the global batch.

        The losses of both directions are summed (section 3).
        """
        parts = {"masked_lm": self._masked_losses, "bicaptioning": _caption_losses, "captioning": _caption_losses}
        # Sums over each record's tokens, and their counts.
        found = ctx.each(parts.get(self.pretext, self._class_losses), batch)
        losses = {name: jnp.sum(sums) / jnp.maximum(jnp.sum(counts), 1) for name, (sums, counts) in found.items()}
        return sum(losses.values(), jnp.zeros(())), losses if len(losses) > 1 else {}

    def _masked_losses(self, model: TextualModel, rows: Mapping[str, Array], ctx: Context) -> dict[str, Any]:
        tokens, end = rows["text"], rows["text_end"]
        # In validation the same for a text whatever else its batch holds.
        keys = ctx.fold(2 * self.text.layers + 4).keys if ctx.train else text_keys(tokens)
        assert keys is not None
        text = mask_tokens(
            tokens,
            end,
            keys,
            mask_id=self.mask_id,
            vocab_size=self.text.vocab_size,
            masked=_MASKED,
            replaced=_REPLACED,
        )
        seen = jnp.arange(tokens.shape[1]) <= end[:, None]
        x = model.embedding(text.tokens, seen, ctx.fold(2 * self.text.layers + 1))
        states = model.decoder(x, ctx, mask=seen, context=model.tokens(rows["image"], ctx))
        chosen = jnp.take_along_axis(states, text.slots[..., None], axis=1)
        losses = model.losses(chosen, text.labels, ctx) * text.weights
        return {"masked": (jnp.sum(losses, axis=1), jnp.sum(text.weights, axis=1))}

    def _class_losses(self, model: Classifier, rows: Mapping[str, Array], ctx: Context) -> dict[str, Any]:
        """The mean of -log softmax over the distinct words of a caption, or over the tags (section 4.2)."""
        if "tags" in rows:
            wanted = rows["tags"]
        else:
            places = jnp.arange(rows["text"].shape[1])
            inside = ((places > 0) & (places < rows["text_end"][:, None])).astype(jnp.float32)
            wanted = jax.vmap(lambda row, has: jnp.zeros(self.text.vocab_size).at[row].max(has))(rows["text"], inside)
        scores = model.classifier(model.features(rows["image"], ctx)).astype(jnp.float32)
        count = jnp.sum(wanted, axis=1)
        losses = -jnp.sum(jax.nn.log_softmax(scores) * wanted, axis=1) / jnp.maximum(count, 1)
        return {"classes": (losses, jnp.minimum(count, 1))}


def _caption_losses(model: Captioner, rows: Mapping[str, Array], ctx: Context) -> dict[str, Any]:
    context = model.tokens(rows["image"], ctx)
    end = rows["text_end"]
    counts = (jnp.arange(rows["text"].shape[1] - 1) < end[:, None]).astype(jnp.float32)
    found = {}
    for direction, (states, targets) in model.states(rows["text"], end, context, ctx).items():
        losses = model.losses(states, targets, ctx) * counts
        found[f"{direction}_loss"] = jnp.sum(losses, axis=1), jnp.sum(counts, axis=1)
    return found
