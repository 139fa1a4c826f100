"""Thread-safe LRU cache for expensive reads; concurrent requests for a chunk share one read."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class ChunkCache(Generic[T]):
    """The most recently used chunks, up to a number of bytes.

    A thread that requests a chunk which another thread is reading waits for its result. A chunk larger than the limit
    is cached alone.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._chunks: collections.OrderedDict[Hashable, concurrent.futures.Future[tuple[T, int]]]
        self._chunks = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, name: Hashable, read: Callable[[], tuple[T, int]]) -> T:
        """The chunk of a name, from the cache or from `read`, which returns it with its size in bytes.

        An exception of `read` is raised in every thread that waits for the chunk. The next call tries again.
        """
        with self._lock:
            future = self._chunks.get(name)
            if is_missing := future is None:
                future = self._chunks[name] = concurrent.futures.Future()
            else:
                self._chunks.move_to_end(name)
        if is_missing:
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
            excess, evicted = self._bytes - self._max_bytes, []
            for old, cached in self._chunks.items():
                if excess <= 0:
                    break
                if cached.done() and cached is not future:
                    excess -= cached.result()[1]
                    evicted.append(old)
            for old in evicted:
                self._bytes -= self._chunks.pop(old).result()[1]
