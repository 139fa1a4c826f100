"""Row-wise functions of a model over whole data sets, on every device of every process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from jaxclip import sharding
from jaxclip.config import AttentionForm
from jaxclip.context import Context
from jaxclip.data.loader import examples
from jaxclip.data.record import Record, Source, caption_lines, image_digest
from jaxclip.data.skips import SkipLog
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.inputs import Image, first_image, first_text
from jaxclip.methods import Method, bind
from jaxclip.step import compute_dtype
from jaxclip.towers.rngs import Rngs


@dataclasses.dataclass(frozen=True)
class EmbeddedSet:
    """The readable records of a source.

    Attributes:
      ids: of each record in its source.
      outputs: of the model's function for the images: float32 [n, width] embeddings, or a pytree of [n, ...] arrays.
      labels: the class index of each, None if there is none.
      tags: the indices of the tags of each, None if its source has none.
      captions: the captions of each, a line each.
      digests: of the images; records with the same one show the same image.
    """

    ids: list[int]
    outputs: Any
    labels: list[int | None]
    tags: list[tuple[int, ...] | None]
    captions: list[list[str]]
    digests: list[str]


class Batch(NamedTuple):
    """One process's share of a batch of images.

    Attributes:
      images: prepared, zeros where one is missing or cannot be read.
      rows: of the images that were read, in `images`.
      positions: theirs among the ids that were asked for.
      records: what was read.
    """

    images: UInt8[np.ndarray, "share size size 3"]
    rows: list[int]
    positions: list[int]
    records: list[Record]


class Encoder:
    """Functions of a method's model, each jitted once for batches of one size over all devices.

    Args:
      method: of the model.
      mesh: the devices.
      precision: as in the config.
      tokenizer: of the model; None if it has no texts.
      batch_size: rows per call, rounded up to a multiple of the devices.
      attention: as in the config.

    Attributes:
      share: how many rows of a batch each process has.
      image: the input that `source` prepares images for; None if the method has no images.
      text: the input that `texts` tokenizes for; None if the method has no texts.
    """

    def __init__(
        self,
        method: Method,
        mesh: Mesh,
        precision: str,
        tokenizer: Tokenizer | None,
        batch_size: int = 256,
        attention: AttentionForm = "auto",
    ):
        self.method = method
        self.mesh = mesh
        self.tokenizer = tokenizer
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.share = self.batch_size // jax.process_count()
        self.image = first_image(method.inputs())
        self.text = first_text(method.inputs())
        self._bind = bind(method)
        dtype = compute_dtype(precision, mesh.devices.flat[0].platform)
        self._ctx = Context(mesh=mesh, dtype=dtype, attention=attention)
        self._rows = sharding.batch_sharding(mesh)
        self._jitted: dict[tuple[str | tuple[str, ...], tuple], Callable[..., Any]] = {}

    def has(self, *names: str) -> bool:
        """Whether the model has these functions; nothing is computed."""
        return not missing_functions(self.method, names)

    def __call__(self, name: str, variables: Any, *rows: np.ndarray, **options: Any) -> Any:
        """A function of the model, `model.NAME(*rows, ctx, **options)`, for any number of rows.

        Args:
          name: of a function that computes each row of its result from the same row of its arguments.
          variables: of the model.
          *rows: arrays [n, ...]; every process gives the same ones.
          **options: the function's own keywords, plain numbers or strings; it is compiled for each set of them.

        Returns:
          What the function gives, as NumPy arrays [n, ...].
        """
        outputs = []
        # No rows make one batch of padding, of which nothing is kept.
        for start in range(0, max(1, len(rows[0])), self.batch_size):
            batch = [array[start : start + self.batch_size] for array in rows]
            count = len(batch[0])
            missing = self.batch_size - count
            padded = [np.concatenate([row, np.zeros((missing, *row.shape[1:]), row.dtype)]) for row in batch]
            # The devices take their rows each from their own process's copy.
            result = self._function(name, options)(variables, *(jax.device_put(array, self._rows) for array in padded))
            outputs.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], result))
        return _concatenated(outputs)

    def images(self, variables: Any, images: UInt8[np.ndarray, "n size size 3"]) -> Float[np.ndarray, "n width"]:
        """Embeds prepared images; every process gives the same ones."""
        return self("encode_image", variables, images)

    def texts(self, variables: Any, texts: Sequence[str]) -> Float[np.ndarray, "n width"]:
        """Embeds strings; every process gives the same ones."""
        return self("encode_text", variables, *self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, int32 [n, context], and the positions of the end tokens, int32 [n].

        Raises:
          UserError: the method has no texts.
        """
        if self.tokenizer is None or self.text is None:
            raise UserError(f"method {method_name(self.method)} has no texts, and so no tokenizer")
        return self.tokenizer(texts, self.text.length)

    def source(
        self,
        variables: Any,
        source: Source,
        skips: SkipLog,
        ids: Sequence[int] | None = None,
        function: str | tuple[str, ...] = "encode_image",
        **options: Any,
    ) -> EmbeddedSet:
        """A function of a source's images, each process reading its share of every batch.

        Args:
          variables: of the model.
          source: of the images.
          skips: where records that cannot be read are counted.
          ids: of the records; all of them by default.
          function: the name of a function of the model that takes a batch of images, such as `features`; several names
            for a dict with what each gives, in one pass.
          **options: the function's own keywords.

        Raises:
          UserError: the method has no images.
        """
        self._image_input()
        ids = range(len(source)) if ids is None else ids
        found: list[tuple[int, int | None, tuple[int, ...] | None, list[str], str]] = []
        outputs: list[Any] = []
        at_work: list[Any] = []
        for batch in self.batches(source, skips, ids):
            # The devices have one batch at work while the next one is prepared.
            at_work.append(self._begun(function, variables, batch.images, options))
            if len(at_work) > 1:
                outputs.append(jax.tree.map(np.asarray, at_work.pop(0)))
            for position, record in zip(batch.positions, batch.records, strict=True):
                captions, digest = caption_lines(record.captions), image_digest(record.image)
                found.append((position, record.label, record.tags, captions, digest))
        outputs += [jax.tree.map(np.asarray, result) for result in at_work]
        found = sorted(entry for part in gather(found) for entry in part)
        positions = [position for position, *_ in found]
        return EmbeddedSet(
            ids=[ids[position] for position in positions],
            outputs=jax.tree.map(lambda leaf: leaf[positions], _concatenated(outputs)),
            labels=[label for _, label, *_ in found],
            tags=[None if tags is None else tuple(tags) for _, _, tags, *_ in found],
            captions=[captions for *_, captions, _ in found],
            digests=[digest for *_, digest in found],
        )

    def batches(self, source: Source, skips: SkipLog, ids: Sequence[int]) -> Iterator[Batch]:
        """Batches of prepared images, each process with its share of every one; all have the same number.

        Args:
          source: of the images.
          skips: where records that cannot be read are counted.
          ids: of the records.

        Raises:
          UserError: the method has no images.
        """
        wanted = self._image_input()
        process, share = jax.process_index(), self.share
        mine = [
            ids[start + process * share : min(start + (process + 1) * share, start + self.batch_size)]
            for start in range(0, len(ids), self.batch_size)
        ]
        stream = examples(source, [i for rows in mine for i in rows], wanted.size, wanted.pixels, skips)
        for number, rows in enumerate(mine):
            batch = Batch(np.zeros((share, wanted.size, wanted.size, 3), np.uint8), [], [], [])
            for row in range(len(rows)):
                _, image, record = next(stream)
                if image is not None and record is not None:
                    batch.images[row] = image
                    batch.rows.append(row)
                    batch.positions.append(number * self.batch_size + process * share + row)
                    batch.records.append(record)
            yield batch

    def of_batch(
        self, function: str | tuple[str, ...], variables: Any, images: np.ndarray | jax.Array, **options: Any
    ) -> Any:
        """A function of the model, or a dict of several, for one batch: NumPy arrays [batch_size, ...].

        Args:
          function: its name, or several names.
          variables: of the model.
          images: this process's share of the batch, or the batch on the devices as `on_devices` gives it.
          **options: the function's own keywords.
        """
        return jax.tree.map(np.asarray, self._begun(function, variables, images, options))

    def _begun(self, function: str | tuple[str, ...], variables: Any, images: Any, options: Mapping[str, Any]) -> Any:
        """What `of_batch` gives, on the devices, which may still be at work."""
        rows = images if isinstance(images, jax.Array) else self.on_devices(images)
        return self._function(function, options)(variables, rows)

    def on_devices(self, share: np.ndarray) -> jax.Array:
        """A batch, of which every process gives its share, with its rows on the devices."""
        return jax.make_array_from_process_local_data(self._rows, share)

    def own_rows(self, batch: np.ndarray) -> np.ndarray:
        """This process's share of what `of_batch` gave."""
        start = jax.process_index() * self.share
        return batch[start : start + self.share]

    def compiled(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """(variables, *arrays) -> function(model, ctx, *arrays) jitted, with its results on every device.

        Args:
          name: of the function; a second one of the same name is not compiled, the first is given again.
          function: of the model, the context and arrays as they lie on the devices.
        """
        key = f"compiled {name}", ()
        if key not in self._jitted:
            replicated = NamedSharding(self.mesh, PartitionSpec())
            self._jitted[key] = jax.jit(
                lambda variables, *arrays: function(self._bind(variables), self._ctx, *arrays), out_shardings=replicated
            )
        return self._jitted[key]

    def _image_input(self) -> Image:
        """The images that the model takes; raises UserError if it takes none."""
        if self.image is None:
            raise UserError(f"method {method_name(self.method)} has no images")
        return self.image

    def _function(self, name: str | tuple[str, ...], options: Mapping[str, Any]) -> Callable[..., Any]:
        """(variables, *rows) -> the result of a function of the model on every device, jitted."""
        key = name, tuple(sorted(options.items()))
        if key not in self._jitted:

            def apply(variables: Any, *rows: jax.Array) -> Any:
                model = self._bind(variables)
                if isinstance(name, str):
                    return getattr(model, name)(*rows, self._ctx, **options)
                # What they have in common, such as the tower, is compiled to be computed once.
                return {one: getattr(model, one)(*rows, self._ctx, **options) for one in name}

            replicated = NamedSharding(self.mesh, PartitionSpec())
            self._jitted[key] = jax.jit(apply, out_shardings=replicated)
        return self._jitted[key]


def model_functions(method: Method) -> list[str]:
    """The names of the public functions of a method's model, such as encode_image; nothing is computed."""
    kind = type(nnx.eval_shape(lambda: method.init(Rngs(0))))
    own = (name for name in dir(kind) if not name.startswith("_") and not hasattr(nnx.Module, name))
    return [name for name in own if callable(getattr(kind, name))]


def missing_functions(method: Method, names: Sequence[str]) -> list[str]:
    """Those of the names that are no functions of the method's model."""
    existing = model_functions(method)
    return [name for name in names if name not in existing]


def lacking(method: Method, names: Sequence[str]) -> str:
    """What to say if a method's model lacks some of these functions, such as "needs match, which method clip ..."."""
    missing = missing_functions(method, names)
    if not missing:
        return ""
    return (
        f"needs {' and '.join(missing)}, which method {method_name(method)} does not have "
        f"(it has {', '.join(model_functions(method)) or 'no functions'})"
    )


def method_name(method: Method) -> str:
    """The `config.method.name` of a method: its module's name."""
    return type(method).__module__.rpartition(".")[2]


def class_embeddings(
    encoder: Encoder, variables: Any, classes: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "classes width"]:
    """The mean over templates of each class's unit text embeddings, scaled to unit length again."""
    texts = [template.replace("{c}", name) for name in classes for template in templates]
    embedded = encoder.texts(variables, texts).reshape(len(classes), len(templates), -1).mean(axis=1)
    return embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12)


def _concatenated(parts: Sequence[Any]) -> Any:
    """Pytrees of [rows, ...] arrays as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def of_first_process(arrays: Any) -> Any:
    """A pytree of arrays as the first process has it, float32 if there are several; all of them must call this."""
    if jax.process_count() == 1:
        return arrays
    return multihost_utils.broadcast_one_to_all(jax.tree.map(lambda array: np.asarray(array, np.float32), arrays))


def gather(value: Any) -> list[Any]:
    """A JSON value of every process, in the order of the processes; all of them must call this."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(data)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    return [
        json.loads(row[:n].tobytes()) for row, n in zip(multihost_utils.process_allgather(padded), lengths, strict=True)
    ]
