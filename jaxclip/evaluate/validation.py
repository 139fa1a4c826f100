"""The training loss on held-out records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxclip import sharding
from jaxclip.data import findings
from jaxclip.data.loader import read_ahead
from jaxclip.data.record import Record, Skip, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.views import Views
from jaxclip.encoder import gather
from jaxclip.errors import UserError
from jaxclip.step import Step, TrainState

_MAX_BATCHES = 8


class Validation:
    """The loss and the method's metrics, averaged over up to eight batches spread over a source, without randomness.

    Every record counts once, and only records that can be used: the first call reads all candidates and leaves the
    others out. A contrastive loss depends on its batch size, so batches are as large as in training if the source has
    enough records, and never partly filled.

    Args:
      source: held-out records.
      views: the method's inputs.
      batch_size: of training.
      mesh: of the run.

    Attributes:
      source: as given.
      skips: counts records that cannot be used.

    Raises:
      UserError: the source has fewer records than there are devices, or none of a sample can be used.
    """

    def __init__(self, source: Source, views: Views, batch_size: int, mesh: Mesh):
        self.source, self.skips = source, SkipLog()
        self._views, self._batch_size, self._devices = views, batch_size, mesh.size
        if len(source) < mesh.size:
            raise UserError(f"data.eval: {len(source)} records are too few for {mesh.size} devices")

        def lacks(record: Record) -> str:
            made = views.evaluation(record, 0)
            return made.reason if isinstance(made, Skip) else ""

        findings.preflight(source, "data.eval", lacks)
        self._ids: np.ndarray | None = None

    def __call__(self, step: Step, state: TrainState) -> dict[str, float]:
        """`validation_NAME` for the loss, in nats, and for every metric of the method's loss.

        Args:
          step: of the run.
          state: of the run; evaluated with its averaged parameters if there are any, and left as it is.

        Raises:
          UserError: fewer records can be used than there are devices.
        """
        if self._ids is None:
            self._ids = self._usable()
        batches, size = self._ids.shape
        share = size // jax.process_count()
        first = jax.process_index() * share
        rows = read_ahead(
            self.source, self._ids[:, first : first + share].ravel().tolist(), self._views.evaluation, self.skips
        )
        over_devices = sharding.batch_sharding(step.mesh)
        totals: dict[str, float] = {}
        for _ in range(batches):
            batch = self._views.batch([self._made(*next(rows)) for _ in range(share)])
            metrics = step.validate(
                state.variables, state.memory, jax.make_array_from_process_local_data(over_devices, batch)
            )
            for name, value in metrics.items():
                totals[f"validation_{name}"] = totals.get(f"validation_{name}", 0.0) + float(value) / batches
        return totals

    def _made(self, record_id: int, row: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if row is None:
            raise UserError(f"data.eval: record {record_id} could be read before and cannot any more: {self.skips}")
        return row

    def _usable(self) -> np.ndarray:
        """The ids of the records of every batch, int64 [batches, size]: evenly spread ones that can be used."""
        wanted = min(_MAX_BATCHES * self._batch_size, len(self.source))
        ids = np.unique(np.linspace(0, len(self.source) - 1, wanted).astype(int))
        mine = ids[jax.process_index() :: jax.process_count()].tolist()
        bad = [index for index, row in read_ahead(self.source, mine, self._views.evaluation, self.skips) if row is None]
        ids = np.setdiff1d(ids, [index for part in gather(bad) for index in part])
        size = min(self._batch_size, len(ids) // self._devices * self._devices)
        if not size:
            raise UserError(
                f"data.eval: {len(ids)} records can be used, too few for {self._devices} devices: {self.skips}"
            )
        batches = min(_MAX_BATCHES, len(ids) // size)
        return ids[np.linspace(0, len(ids) - 1, batches * size).astype(int)].reshape(batches, size)
