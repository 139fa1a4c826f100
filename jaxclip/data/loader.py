"""Loader of batches from a source: selection, decoding, cropping and tokenization, ahead of the step."""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxclip.config import DataConfig, PixelsConfig
from jaxclip.data import order
from jaxclip.data.images.crops import prepare
from jaxclip.data.images.decode import Unreadable, open_image
from jaxclip.data.mixture import chunk_numbers, is_chunked, may_replace, training_order
from jaxclip.data.record import Record, Skip, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.storage import ChunkCache
from jaxclip.data.views import Views
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.quiet import quiet_stderr

T = TypeVar("T")

# Rows read by one call of the pipeline: enough to batch reads and tokenizing, few enough to share among threads.
_CHUNK = 32
# Rows prepared in advance, or two batches if they are more.
_AHEAD = 512
_KEPT_ORDERS = 64 << 20  # bytes of steps' orders, 24 a row
# Unreadable records in a row before the data, not the record, is to blame.
_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class TrainingLoader:
    """Training batches as a pure function of (seed, step).

    Attributes:
      source: records.
      views: the method's inputs, made of a record.
      config: the order and how images are cropped and captions chosen; as `views` has it.
      batch_size: rows of the global batch.
      seed: of the order and the augmentation.
      process_index, process_count: which share of each batch's rows this process reads.
      skips: counts records that cannot be used.
    """

    source: Source
    views: Views
    config: DataConfig
    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    skips: SkipLog = dataclasses.field(default_factory=SkipLog)

    def batches(self, first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the batches of steps first .. last - 1, read ahead.

        Yields:
          The arrays of `inputs.shapes` by name, with this process's rows.

        Raises:
          UserError: no usable record was found for a row.
        """
        with quiet_stderr():
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")
        rows = self.batch_size // self.process_count
        chunk = max(size for size in range(1, _CHUNK + 1) if rows % size == 0)
        chunks = rows // chunk
        arrays = shapes(self.views.inputs, chunk)
        failures: list[Exception] = []

        def read(number: np.ndarray) -> list[np.ndarray]:
            step, part = divmod(int(number), chunks)
            try:
                made = self.rows(step * self.batch_size + self.process_index * rows + part * chunk, chunk)
                return [made[name] for name in arrays]
            except Exception as error:
                failures.append(error)  # TensorFlow would turn it into text.
                raise

        # AutoGraph would parse functions that it has nothing to convert in, for a second at each start.
        @tf.autograph.experimental.do_not_convert
        def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
            values = tf.numpy_function(read, [number], [array.dtype for array in arrays.values()])
            for value, array in zip(values, arrays.values(), strict=True):
                value.set_shape(array.shape)
            return dict(zip(arrays, values, strict=True))

        @tf.autograph.experimental.do_not_convert
        def join(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {name: tf.reshape(value, (rows, *value.shape[2:])) for name, value in batch.items()}

        threads = os.cpu_count() or 1
        dataset = tf.data.Dataset.range(first * chunks, last * chunks)
        dataset = dataset.map(load, num_parallel_calls=threads, deterministic=True)
        dataset = dataset.batch(chunks, drop_remainder=True).map(join)
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        reading = [dataset.with_options(options).as_numpy_iterator()]
        # A reader still at work when Python shuts down would wait for it, and it for the reader.
        atexit.register(reading.clear)
        # A thread of its own fetches: the step's thread would wait its turn with the interpreter for every batch.
        fetcher = concurrent.futures.ThreadPoolExecutor(1)
        try:
            ahead = max(2, _AHEAD // rows)
            pending = collections.deque(fetcher.submit(next, reading[0], None) for _ in range(ahead))
            while (batch := pending.popleft().result()) is not None:
                pending.append(fetcher.submit(next, reading[0], None))
                yield batch
        except tf.errors.OpError:
            if failures:
                raise failures[0] from None
            raise
        finally:
            # Without waiting: a source that has stalled would keep a stopped run from ending.
            fetcher.shutdown(wait=False, cancel_futures=True)
            reading.clear()
            atexit.unregister(reading.clear)

    def rows(self, position: int, count: int) -> dict[str, np.ndarray]:
        """The examples at `position` .. `position + count - 1` of the endless training sequence.

        Raises:
          UserError: no usable record was found for a row, or too many records cannot be used.
        """
        positions, ids, epochs = self.places(position, count)
        records = self.source.read(ids.tolist())
        rows: list[Mapping[str, Any]] = []
        unusable = 0
        keys = order.record_keys(self.seed, epochs, ids).tolist()
        for row in range(count):
            record, record_id, key = records[row], int(ids[row]), keys[row]
            for attempt in range(_ATTEMPTS):
                example = self._example(record, key, int(epochs[row]), record_id)
                if not isinstance(example, Skip):
                    rows.append(example)
                    break
                self.skips.add(example.reason, example.key)
                unusable += not attempt
                among = may_replace(self.source, record_id, attempt)
                record_id = order.substitute(self.seed, int(positions[row]), attempt, among)
                (record,) = self.source.read([record_id])
                key = int(order.record_keys(self.seed, epochs[row], record_id))
            else:
                raise UserError(f"data.train: {_ATTEMPTS} records in a row cannot be used: {self.skips}")
        self.skips.check_rate(count, unusable)
        return self.views.batch(rows)

    def _example(self, record: Record | Skip, key: int, epoch: int, record_id: int) -> Mapping[str, Any] | Skip:
        return record if isinstance(record, Skip) else self.views.training(record, key, epoch, record_id)

    def places(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The positions, record ids and epochs of `count` rows, int64 [count] each.

        The rows of a batch of chunked records are sorted by chunk, so that each host's rows come from few chunks. The
        rows of a batch have no order that a model could notice.
        """
        if not is_chunked(self.source):
            positions = np.arange(position, position + count)
            return positions, *self._order(positions)
        steps = range(position // self.batch_size, (position + count - 1) // self.batch_size + 1)
        places = np.concatenate([self._batch(step) for step in steps], axis=1)
        start = position - steps.start * self.batch_size
        positions, ids, epochs = places[:, start : start + count]
        return positions, ids, epochs

    @functools.cached_property
    def _order(self) -> order.Order:
        return training_order(self.source, self.seed, self.config.shuffle_window)

    @functools.cached_property
    def _batch(self) -> Callable[[int], np.ndarray]:
        kept: ChunkCache[np.ndarray] = ChunkCache(_KEPT_ORDERS)

        def lay_out(step: int) -> tuple[np.ndarray, int]:
            """Positions, ids and epochs of a step's whole batch, sorted by chunk: int64 [3, batch_size]."""
            positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            ids, epochs = self._order(positions)
            by_chunk = np.argsort(chunk_numbers(self.source, ids), kind="stable")
            places = np.stack([positions, ids, epochs])[:, by_chunk]
            return places, places.nbytes

        # Worked out once, by the first of the threads that read a step's rows.
        return lambda step: kept.get(step, lambda: lay_out(step))


def examples(
    source: Source, ids: Sequence[int], image_size: int, pixels: PixelsConfig, skips: SkipLog
) -> Iterator[tuple[int, np.ndarray | None, Record | None]]:
    """Records in the order of `ids`, their images prepared for evaluation as `pixels` says, read ahead by threads.

    Yields:
      (id, uint8 [size, size, 3], record); None for image and record if it cannot be read, which is counted.
    """

    def make(record: Record, record_id: int) -> tuple[np.ndarray, Record] | Skip:
        try:
            return prepare(open_image(record.image), image_size, pixels), record
        except Unreadable as error:
            return Skip(str(error), record.key)

    for record_id, made in read_ahead(source, ids, make, skips):
        yield record_id, *(made or (None, None))


def read_ahead(
    source: Source, ids: Sequence[int], make: Callable[[Record, int], T | Skip], skips: SkipLog
) -> Iterator[tuple[int, T | None]]:
    """make(record, id) for the records in the order of `ids`, by threads that read ahead.

    Yields:
      (id, what was made); None for a record that cannot be used, which is counted.
    """

    def load(chunk: Sequence[int]) -> list[tuple[int, T | None]]:
        loaded: list[tuple[int, T | None]] = []
        for record_id, record in zip(chunk, source.read(chunk), strict=True):
            made = record if isinstance(record, Skip) else make(record, record_id)
            if isinstance(made, Skip):
                skips.add(made.reason, made.key)
            loaded.append((record_id, None if isinstance(made, Skip) else made))
        return loaded

    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending: collections.deque = collections.deque()
        for start in range(0, len(ids), _CHUNK):
            pending.append(pool.submit(load, ids[start : start + _CHUNK]))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
