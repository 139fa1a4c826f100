"""Samples of what a recipe gives its model: training crops as augmented, evaluation crops, texts with their tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from jaxclip import inputs, methods
from jaxclip.config import Config
from jaxclip.context import Context
from jaxclip.data import order, sources, vocabulary
from jaxclip.data.findings import THUMBNAIL
from jaxclip.data.images.decode import open_image
from jaxclip.data.mixture import spread
from jaxclip.data.record import Record, Skip
from jaxclip.data.skips import SkipLog
from jaxclip.data.tokenizers import Tokenizer, text_lengths
from jaxclip.data.views import Views
from jaxclip.device_augmentation import augmentation
from jaxclip.errors import UserError
from jaxclip.inputs import Inputs
from jaxclip.towers.layers import normalized_pixels


@dataclasses.dataclass(frozen=True)
class Crop:
    """An image as the model takes it.

    Attributes:
      pixels: uint8 [size, size, 3].
      mean, deviation: over all pixels and channels, after normalization.
    """

    pixels: np.ndarray
    mean: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A text as the model takes it.

    Attributes:
      text: the tokens decoded.
      pieces: (id, its text) of every token, padding left out.
      length: tokens of the input, padding included.
      name: of what the text is, such as its weight among answers; "" for nothing.
    """

    text: str
    pieces: tuple[tuple[int, str], ...]
    length: int
    name: str = ""


@dataclasses.dataclass(frozen=True)
class DrawnRecord:
    """The inputs of a method that one record gives.

    Attributes:
      key: its name in the source.
      images: by number, the record's images as thumbnails, with their (width, height).
      training: by input, one crop for each epoch.
      evaluation: by input, the crop of evaluations.
      texts: by input, those of each epoch.
      values: by input, labels, tags and numbers, as text.
    """

    key: str
    images: tuple[tuple[PIL.Image.Image, tuple[int, int]], ...]
    training: dict[str, list[Crop]]
    evaluation: dict[str, Crop]
    texts: dict[str, list[Tokens]]
    values: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Records of a recipe's training data, as the method takes them.

    Attributes:
      inputs: of the method.
      records: in the source's order.
      skips: records that cannot be used, by reason.
      epochs: how many times each record was drawn.
    """

    inputs: Inputs
    records: list[DrawnRecord]
    skips: SkipLog
    epochs: int


def sample(config: Config, count: int, epochs: int) -> Sample:
    """Draws records as the run of a recipe would draw them in its first epochs.

    Crops, captions and what the CPU changes are the run's own, for its seed. What `data.augment_on_device` changes is
    drawn from the same distribution, but differs from the run's: there it depends on the step.

    Args:
      config: the recipe.
      count: records, spread evenly over the training data.
      epochs: at least 1.

    Raises:
      UserError: something in the config or the data that a person can mend, or no record can be used.
    """
    method = methods.from_config(config.method)
    kinds = method.inputs()
    source = sources.open_source(config.data.train, root=config.data.root)
    tokenizer = vocabulary.tokenizer_of(kinds, config.data, source)
    if tokenizer is not None:
        method.check(tokenizer)
    views = Views(kinds, config.data, tokenizer)
    found, skips = _usable(views, config, count, epochs, source)
    if not found:
        raise UserError(f"config.data.train: none of {count} sampled records can be used: {skips}")
    batches = [views.batch([rows[epoch] for _, rows, _ in found]) for epoch in range(epochs)]
    augment = augmentation(kinds, config.data)
    if augment is not None:
        keys = jax.random.split(jax.random.key(config.seed), epochs)
        batches = [
            {
                name: np.asarray(array)
                for name, array in augment(jax.tree.map(jnp.asarray, batch), Context(key=key)).items()
            }
            for batch, key in zip(batches, keys, strict=True)
        ]
    evaluation = views.batch([row for _, _, row in found])
    records = []
    for row, (record, _, _) in enumerate(found):
        drawn = [{name: array[row] for name, array in batch.items()} for batch in batches]
        still = {name: array[row] for name, array in evaluation.items()}
        records.append(_drawn(record, kinds, tokenizer, drawn, still, config.data.max_pixels))
    return Sample(inputs=kinds, records=records, skips=skips, epochs=epochs)


def _usable(views: Views, config: Config, count: int, epochs: int, source):
    """Records with their rows of each epoch and of evaluation, and what cannot be used."""
    skips = SkipLog()
    ids = spread(source, count)
    found = []
    for record_id, record in zip(ids, source.read(ids), strict=True):
        if not isinstance(record, Skip):
            keys = [int(order.record_keys(config.seed, epoch, record_id)) for epoch in range(epochs)]
            rows = [views.training(record, key, epoch, record_id) for epoch, key in enumerate(keys)]
            rows.append(views.evaluation(record, record_id))
            usable = [row for row in rows if not isinstance(row, Skip)]
            if len(usable) == len(rows):
                found.append((record, usable[:-1], usable[-1]))
                continue
            record = next(row for row in rows if isinstance(row, Skip))
        skips.add(record.reason, record.key)
    return found, skips


def _drawn(record: Record, kinds: Inputs, tokenizer: Tokenizer | None, drawn, still, max_pixels: int) -> DrawnRecord:
    numbers = sorted({kind.number for kind in kinds.values() if isinstance(kind, inputs.Image)})
    stored = [record.image if number == 0 else record.more_images[number - 1] for number in numbers]
    drawn_record = DrawnRecord(
        key=record.key,
        images=tuple(_thumbnail(image, max_pixels) for image in stored),
        training={},
        evaluation={},
        texts={},
        values={},
    )
    for name, kind in kinds.items():
        match kind:
            case inputs.Image():
                drawn_record.training[name] = [_crop(row[name], kind) for row in drawn]
                drawn_record.evaluation[name] = _crop(still[name], kind)
            case inputs.Text():
                assert tokenizer is not None
                drawn_record.texts[name] = list(dict.fromkeys(_tokens(tokenizer, row[name]) for row in drawn))
            case inputs.Answers():
                assert tokenizer is not None
                answers = [
                    _tokens(tokenizer, tokens, f"weight {weight:g}")
                    for row in drawn
                    for tokens, weight in zip(row[name], row[f"{name}_weight"], strict=True)
                    if weight
                ]
                drawn_record.texts[name] = list(dict.fromkeys(answers))
            case inputs.Tags():
                drawn_record.values[name] = ", ".join(map(str, np.flatnonzero(drawn[0][name]))) or "none"
            case _:
                drawn_record.values[name] = ", ".join(dict.fromkeys(str(row[name]) for row in drawn))
    return drawn_record


def _thumbnail(stored: bytes | np.ndarray, max_pixels: int) -> tuple[PIL.Image.Image, tuple[int, int]]:
    image = open_image(stored, max_pixels)
    size = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image, size


def _crop(pixels: np.ndarray, kind: inputs.Image) -> Crop:
    values = normalized(pixels[None], kind)
    return Crop(pixels, float(values.mean()), float(values.std()))


def normalized(images: np.ndarray, kind: inputs.Image) -> np.ndarray:
    """Images [batch, size, size, 3] as an image tower takes them, float32."""
    return np.asarray(normalized_pixels(jnp.asarray(images), kind.pixels.mean, kind.pixels.std, jnp.float32))


def _tokens(tokenizer: Tokenizer, tokens: np.ndarray, name: str = "") -> Tokens:
    (length,) = text_lengths(tokenizer, tokens[None])
    pieces = tuple((int(token), _piece(tokenizer, int(token))) for token in tokens[:length])
    return Tokens(tokenizer.decode(tokens), pieces, len(tokens), name)


def _piece(tokenizer: Tokenizer, token: int) -> str:
    if token in (tokenizer.start_id, tokenizer.end_id):
        return "start" if token == tokenizer.start_id else "end"
    return tokenizer.decode([token]).strip()
