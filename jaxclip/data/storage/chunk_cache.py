"""What is dear to read, kept in memory while it is still wanted, and read once however many threads ask."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class ChunkCache(Generic[T]):
    """The chunks used last, up to a number of bytes; safe to use from several threads.

    A thread that asks for a chunk which another one is reading waits for that one's result. A chunk larger than the
    limit is kept alone.
    """

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._chunks: collections.OrderedDict[Hashable, concurrent.futures.Future[tuple[T, int]]]
        self._chunks = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, name: Hashable, read: Callable[[], tuple[T, int]]) -> T:
        """The chunk of that name; `read` returns it with its size in bytes where it is not kept.

        Whatever `read` raises is raised in every thread that waits for it, and the next call tries again.
        """
        with self._lock:
            future = self._chunks.get(name)
            if mine := future is None:
                future = self._chunks[name] = concurrent.futures.Future()
            else:
                self._chunks.move_to_end(name)
        if mine:
            self._fill(name, future, read)
        return future.result()[0]

    def _fill(self, name: Hashable, future: concurrent.futures.Future, read: Callable[[], tuple[T, int]]) -> None:
        try:
            chunk, size = read()
        except BaseException as error:
            with self._lock:
                del self._chunks[name]
            future.set_exception(error)
            return
        with self._lock:
            future.set_result((chunk, size))
            self._bytes += size
            excess, dropped = self._bytes - self._most_bytes, []
            for old, kept in self._chunks.items():
                if excess <= 0:
                    break
                if kept.done() and kept is not future:
                    excess -= kept.result()[1]
                    dropped.append(old)
            for old in dropped:
                self._bytes -= self._chunks.pop(old).result()[1]
