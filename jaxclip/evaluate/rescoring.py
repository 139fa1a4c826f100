"""Scores of selected pairs of images and texts by a model that fuses the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxclip import sharding
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError

_CHUNK = 512  # queries whose similarities to all keys are held at a time


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
    """The model's `match` of each pair.

    The images pass by in batches: the tokens of one batch are on the devices and not of all. The states of all texts
    are in the memory of each process. Every process takes part and gets all scores.

    Args:
      encoder, variables: of a model with `image_tokens`, `text_states` and `match`.
      source: of the images.
      skips: where records that cannot be read are counted.
      numbers: of the images' records in the source.
      texts: the captions.
      pairs: rows of `numbers` and of `texts`, ordered by the first.

    Raises:
      UserError: an image cannot be read.
    """
    tokens, ends = encoder.tokenize(texts)
    states = encoder("text_states", variables, tokens, ends)
    shared = sharding.batch_sharding(encoder.mesh)
    encode = encoder.compiled(lambda model, ctx, images: model.image_tokens(images, ctx))
    match = encoder.compiled(
        lambda model, ctx, images, row, states, end: model.match(ctx.constrain(images[row]), states, end, ctx)
    )
    size, scores = encoder.batch_size, np.empty(len(pairs), np.float32)
    starts = np.searchsorted(pairs[:, 0], np.arange(0, len(numbers) + size, size))
    for number, batch in enumerate(encoder.batches(source, skips, numbers)):
        first = number * size
        mine = range(len(numbers))[first : first + size][jax.process_index() * encoder.share :][: encoder.share]
        if len(batch.rows) != len(mine):
            raise UserError(f"an image could be read before and cannot any more: {skips}")
        images = encode(variables, encoder.on_devices(batch.images))
        for start in range(starts[number], starts[number + 1], size):
            chosen = pairs[start : min(start + size, starts[number + 1])]
            # The last pair stands in for those that are missing.
            filled = chosen[np.minimum(np.arange(size), len(chosen) - 1)]
            rows = ((filled[:, 0] - first).astype(np.int32), states[filled[:, 1]], ends[filled[:, 1]])
            given = sharding.from_host(rows, shared)
            scores[start : start + len(chosen)] = np.asarray(match(variables, images, *given))[: len(chosen)]
    return scores
