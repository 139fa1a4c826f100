"""The training loss on held-out records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxclip import sharding
from jaxclip.data.loader import read_ahead
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.views import Views
from jaxclip.errors import UserError
from jaxclip.step import Step, TrainState

_MAX_BATCHES = 8


def validation_metrics(
    step: Step, state: TrainState, source: Source, views: Views, batch_size: int, skips: SkipLog
) -> dict[str, float]:
    """The loss and the method's metrics, averaged over up to eight batches spread over a source, without randomness.

    A contrastive loss depends on its batch size, so batches are as large as in training if the source has enough
    records, and never partly filled.

    Args:
      step: of the run.
      state: of the run; evaluated with its averaged parameters if there are any, and left as it is.
      source: held-out records.
      views: the method's inputs.
      batch_size: of training.
      skips: counts records that cannot be used.

    Returns:
      `validation_NAME` for the loss, in nats, and for every metric of the method's loss.

    Raises:
      UserError: the source has fewer records than there are devices, or none that can be used.
    """
    devices = step.mesh.size
    size = min(batch_size, len(source) // devices * devices)
    if not size:
        raise UserError(f"data.eval: {len(source)} records are too few for {devices} devices")
    batches = min(_MAX_BATCHES, len(source) // size)
    share = size // jax.process_count()
    first = jax.process_index() * share
    ids = np.linspace(0, len(source) - 1, batches * size).astype(int).reshape(batches, size)
    rows = _usable(source, ids[:, first : first + share].ravel().tolist(), views, skips)
    over_devices = sharding.batch_sharding(step.mesh)
    totals: dict[str, float] = {}
    for _ in range(batches):
        batch = views.batch([next(rows) for _ in range(share)])
        metrics = step.validate(
            state.variables, state.memory, jax.make_array_from_process_local_data(over_devices, batch)
        )
        for name, value in metrics.items():
            totals[f"validation_{name}"] = totals.get(f"validation_{name}", 0.0) + float(value) / batches
    return totals


def _usable(source: Source, ids: list[int], views: Views, skips: SkipLog) -> Iterator[Mapping[str, Any]]:
    """The inputs of the records of `ids`. The place of one that cannot be used is taken by the one before it."""
    last: Mapping[str, Any] | None = None
    missing = 0
    for _, row in read_ahead(source, ids, views.evaluation, skips):
        if row is None and last is None:
            missing += 1
            continue
        last = row if row is not None else last
        assert last is not None
        # The first usable record stands for those before it.
        yield from [last] * (missing + 1)
        missing = 0
    if last is None:
        raise UserError(f"data.eval: none of {len(ids):,} records can be used: {skips}")
