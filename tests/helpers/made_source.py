"""Base of sources whose records tests make up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxclip.data.record import Record, Skip


@dataclasses.dataclass(frozen=True)
class MadeSource:
    """A source of so many records, each made by `record`."""

    length: int
    class_names: Sequence[str] = dataclasses.field(default=(), kw_only=True)
    chunk_ends: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.length

    def read(self, ids: Sequence[int]) -> list[Record | Skip]:
        return [self.record(int(index)) for index in ids]

    def record(self, index: int) -> Record | Skip:
        raise NotImplementedError
