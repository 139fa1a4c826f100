"""What a model that fuses images and texts says of selected pairs, with the images passing by in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, UInt8

from jaxclip import sharding
from jaxclip.config import PixelsConfig
from jaxclip.data.images.crops import prepare
from jaxclip.data.images.decode import Unreadable, open_image
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Batch, Encoder, gather
from jaxclip.errors import UserError

_CHUNK = 512  # queries whose similarities to all keys are held at a time
_GRAY = 127

# Of the model, the context, the images' tokens [rows, images, places, channels] and further rows: an array [rows, ...].
OfPairs = Callable[..., jax.Array]


def most_similar(
    mesh: Mesh, queries: Float[np.ndarray, "queries width"], keys: Float[np.ndarray, "keys width"], k: int
) -> Int[np.ndarray, "queries k"]:
    """The rows of the k keys with the largest inner products, the largest first, of equal ones the first.

    Args:
      mesh: the devices, which share the queries.
      queries, keys: embeddings; every process gives the same ones.
      k: at most as many as there are keys.
    """
    rows = -(-min(_CHUNK, len(queries)) // mesh.size) * mesh.size
    shared, replicated = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def best(queries: jax.Array, keys: jax.Array) -> jax.Array:
        values = jnp.matmul(queries, keys.T, precision="highest")
        return jax.lax.top_k(jnp.where(jnp.isnan(values), -jnp.inf, values), k)[1]

    run = jax.jit(best, out_shardings=replicated)
    on_devices = sharding.from_host(keys, replicated)
    found = []
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        padded = np.concatenate([part, np.zeros((rows - len(part), part.shape[1]), part.dtype)])
        found.append(np.asarray(run(sharding.from_host(padded, shared), on_devices))[: len(part)])
    return np.concatenate(found)


def match_scores(
    encoder: Encoder,
    variables: Any,
    source: Source,
    skips: SkipLog,
    numbers: Sequence[int],
    texts: Sequence[str],
    pairs: Int[np.ndarray, "pairs 2"],
) -> Float[np.ndarray, "pairs"]:
    """The model's `match` of each pair. The states of all texts are in the memory of each process.

    Args:
      encoder, variables, source, skips, numbers, pairs: as of `of_pairs`, for a model with `text_states` and `match`.
      texts: the captions, which the second column of `pairs` counts.

    Raises:
      UserError: an image cannot be read.
    """
    tokens, ends = encoder.tokenize(texts)
    rows = encoder("text_states", variables, tokens, ends), ends

    def function(model: Any, ctx: Any, images: jax.Array, states: jax.Array, end: jax.Array) -> jax.Array:
        return model.match(images[:, 0], states, end, ctx)

    scores, _, known = of_pairs(encoder, variables, source, skips, numbers, pairs, rows, ("match", function))
    if not known.all():
        raise UserError(f"an image could be read before and cannot any more: {skips}")
    return scores


def of_pairs(
    encoder: Encoder,
    variables: Any,
    source: Source,
    skips: SkipLog,
    numbers: Sequence[int],
    pairs: Int[np.ndarray, "pairs 2"],
    rows: tuple[np.ndarray, ...],
    function: tuple[str, OfPairs],
    *,
    images: int = 1,
    blank: bool = False,
) -> tuple[np.ndarray, np.ndarray | None, Bool[np.ndarray, "pairs"]]:
    """A function of pairs of a record's images and a text; every process takes part and gets all results.

    The tokens of one batch of images are on the devices at a time.

    Args:
      encoder, variables: of a model with `image_tokens`.
      source: of the images.
      skips: where records that cannot be read are counted.
      numbers: of the records in the source.
      pairs: rows of `numbers` and of `rows`, ordered by the first.
      rows: arrays with a row for each text.
      function: its name, as of `Encoder.compiled`, and the function, see `OfPairs`; its further rows are those of
        `rows`.
      images: how many of a record's images the function takes.
      blank: whether to compute it with gray images, too, to measure what the texts alone say.

    Returns:
      The results, those with gray images or None, and of which pairs the images could be read; the results of the
      others mean nothing.
    """
    name, of_rows = function
    shared = sharding.batch_sharding(encoder.mesh)
    encode = encoder.compiled("image_tokens", lambda model, ctx, images: model.image_tokens(images, ctx))
    run = encoder.compiled(
        name, lambda model, ctx, tokens, place, *rows: of_rows(model, ctx, ctx.constrain(tokens[place]), *rows)
    )
    size = encoder.batch_size
    starts = np.searchsorted(pairs[:, 0], np.arange(0, len(numbers) + size, size))
    found: list[np.ndarray] = []
    without: list[np.ndarray] = []
    readable: list[int] = []
    gray = None
    for number, batch in enumerate(encoder.batches(source, skips, numbers)):
        shown, positions = _images(encoder, batch, images, skips)
        readable += positions
        tokens = jnp.stack([encode(variables, encoder.on_devices(part)) for part in shown], axis=1)
        if blank and gray is None:
            grays = encode(variables, encoder.on_devices(np.full_like(batch.images, _GRAY)))
            gray = jnp.stack([grays] * images, axis=1)
        for start in range(starts[number], starts[number + 1], size):
            chosen = pairs[start : min(start + size, starts[number + 1])]
            # The last pair stands in for those that are missing.
            filled = chosen[np.minimum(np.arange(size), len(chosen) - 1)]
            place = (filled[:, 0] - number * size).astype(np.int32)
            given = sharding.from_host((place, *(part[filled[:, 1]] for part in rows)), shared)
            found.append(np.asarray(run(variables, tokens, *given))[: len(chosen)])
            if gray is not None:
                without.append(np.asarray(run(variables, gray, *given))[: len(chosen)])
    known = np.zeros(len(numbers), bool)
    known[[position for part in gather(readable) for position in part]] = True
    return np.concatenate(found), np.concatenate(without) if without else None, known[pairs[:, 0]]


def _images(
    encoder: Encoder, batch: Batch, count: int, skips: SkipLog
) -> tuple[list[UInt8[np.ndarray, "share size size 3"]], list[int]]:
    """This process's share of a batch, an array for each image of a record, and the positions that have all of them."""
    assert encoder.image is not None
    size, pixels = encoder.image.size, encoder.image.pixels
    further = [np.zeros_like(batch.images) for _ in range(count - 1)]
    positions = []
    for row, position, record in zip(batch.rows, batch.positions, batch.records, strict=True):
        try:
            for place, part in enumerate(further):
                part[row] = _further(record, place, size, pixels)
            positions.append(position)
        except Unreadable as error:
            skips.add(str(error), record.key)
    return [batch.images, *further], positions


def _further(record: Record, place: int, size: int, pixels: PixelsConfig) -> UInt8[np.ndarray, "size size 3"]:
    if place >= len(record.more_images):
        raise Unreadable("no further image")
    return prepare(open_image(record.more_images[place]), size, pixels)
