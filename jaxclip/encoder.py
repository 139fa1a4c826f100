"""Embeddings of whole data sets, on every device of every process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from jaxclip import sharding
from jaxclip.context import Context
from jaxclip.data.loader import examples
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.inputs import first_image, first_text
from jaxclip.methods import bind
from jaxclip.step import compute_dtype


@dataclasses.dataclass(frozen=True)
class EmbeddedSet:
    """The readable records of a source.

    Attributes:
      images: float32 [n, width], unit length.
      labels: the class index of each, None where there is none.
      captions: the captions of each.
    """

    images: np.ndarray
    labels: list[int | None]
    captions: list[list[str]]


class Encoder:
    """A method's two towers, jitted once for batches of one size over all devices.

    Args:
      method: with towers `encode_image` and `encode_text`, an image size and a context length.
      mesh: the devices.
      precision: as in the config.
      tokenizer: of the model.
      batch_size: rows per call, rounded up to a multiple of the devices.
    """

    def __init__(self, method: Any, mesh: Mesh, precision: str, tokenizer: Tokenizer, batch_size: int = 256):
        self.method = method
        self.mesh = mesh
        self.tokenizer = tokenizer
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        dtype = compute_dtype(precision, mesh.devices.flat[0].platform)
        model = bind(method)
        self._batch = sharding.batch_sharding(mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        self.image = first_image(method.inputs())
        self.text = first_text(method.inputs())
        ctx = Context(mesh=mesh, dtype=dtype)
        self._encode_image = jax.jit(
            lambda params, images: model(params).encode_image(images, ctx), out_shardings=replicated
        )
        self._encode_text = jax.jit(
            lambda params, tokens, ends: model(params).encode_text(tokens, ends, ctx), out_shardings=replicated
        )

    def images(self, params: Any, images: UInt8[np.ndarray, "n size size 3"]) -> Float[np.ndarray, "n width"]:
        """Embeds prepared pictures; every process gives the same ones."""
        return self._in_batches(self._encode_image, params, images)

    def texts(self, params: Any, texts: Sequence[str]) -> Float[np.ndarray, "n width"]:
        """Embeds strings; every process gives the same ones."""
        tokens, ends = self.tokenizer(texts, self.text.length)
        return self._in_batches(self._encode_text, params, tokens, ends)

    def _in_batches(self, encode: Any, params: Any, *arrays: np.ndarray) -> np.ndarray:
        size = self.batch_size
        outputs = []
        # No rows make one batch of padding, of which nothing is kept.
        for start in range(0, max(1, len(arrays[0])), size):
            rows = [array[start : start + size] for array in arrays]
            padded = [np.concatenate([row, np.zeros((size - len(row), *row.shape[1:]), row.dtype)]) for row in rows]
            # The devices take their rows each from their own process's copy.
            embedded = encode(params, *(jax.device_put(array, self._batch) for array in padded))
            outputs.append(np.asarray(embedded)[: len(rows[0])])
        return np.concatenate(outputs)

    def source(self, params: Any, source: Source, skips: SkipLog, ids: Sequence[int] | None = None) -> EmbeddedSet:
        """Embeds a source's pictures, each process reading its share of every batch."""
        ids = range(len(source)) if ids is None else ids
        process, processes = jax.process_index(), jax.process_count()
        share = self.batch_size // processes
        mine = [
            ids[start + process * share : min(start + (process + 1) * share, start + self.batch_size)]
            for start in range(0, len(ids), self.batch_size)
        ]
        stream = examples(source, [i for rows in mine for i in rows], self.image.size, self.image.pixels, skips)
        found: list[tuple[int, int | None, list[str]]] = []
        outputs = []
        for number, rows in enumerate(mine):
            images = np.zeros((share, *(self.image.size,) * 2, 3), np.uint8)
            for row in range(len(rows)):
                _, image, record = next(stream)
                if image is not None and record is not None:
                    images[row] = image
                    position = number * self.batch_size + process * share + row
                    found.append((position, record.label, list(record.captions)))
            batch = jax.make_array_from_process_local_data(self._batch, images)
            outputs.append(np.asarray(self._encode_image(params, batch)))
        found = sorted(entry for part in _gather(found) for entry in part)
        embedded = np.concatenate(outputs)[[position for position, _, _ in found]]
        return EmbeddedSet(embedded, [label for _, label, _ in found], [captions for _, _, captions in found])


def class_embeddings(
    encoder: Encoder, params: Any, classes: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "classes width"]:
    """The mean over templates of each class's unit text embeddings, scaled to unit length again."""
    texts = [template.replace("{c}", name) for name in classes for template in templates]
    embedded = encoder.texts(params, texts).reshape(len(classes), len(templates), -1).mean(axis=1)
    return embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12)


def _gather(value: Any) -> list[Any]:
    """A JSON value of every process, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(data)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    return [
        json.loads(row[:n].tobytes()) for row, n in zip(multihost_utils.process_allgather(padded), lengths, strict=True)
    ]
