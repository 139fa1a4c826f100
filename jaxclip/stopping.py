"""SIGTERM, SIGHUP and Ctrl-C: when they end a command, and with which exit status."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGINT: "Ctrl-C"}
# A terminal that is closed tells a process more than once.
_ONE_EVENT = 1.0  # seconds


class Stopped(BaseException):
    """A signal ended the command. No Exception, so that no handler of errors takes it for one.

    Attributes:
      status: the exit status: 130 after Ctrl-C, else 75, upon which launchers start the command again.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Signals:
    """What the process has been told by signals, and whether it may end at once.

    The first signal raises Stopped where that is allowed, which it is until `deferred`; the second one ends the
    process.

    Attributes:
      asked: whether a signal was received.
      name: which, in words.
      status: the exit status that it asks for.
      hint: what to do after a stop, the end of the message.
      several: whether the process is one of several. Then jax.distributed handles SIGTERM, and tells all of them to
        stop after the same step; the other signals are passed on to it, and no process ends alone.
    """

    def __init__(self) -> None:
        self.name = "SIGTERM"
        self.status = 75
        self.several = False
        self.asked = False
        self.hint = "run the same command again"
        self._deferred = False
        self._received = 0.0

    @contextlib.contextmanager
    def handled(self) -> Iterator[Signals]:
        """Handles the signals in the block, which must be entered in the main thread; elsewhere nothing is changed.

        What the process was started to ignore stays ignored, such as SIGHUP under nohup.
        """
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                if signal.getsignal(name) is not signal.SIG_IGN:
                    before[name] = signal.signal(name, self._handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals are only noted in the block, which looks at `asked`: it has something to save."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextlib.contextmanager
    def at_once(self, hint: str) -> Iterator[None]:
        """Signals end the block by raising Stopped, those received before it too.

        Args:
          hint: what to do after a stop.
        """
        before, self._deferred, self.hint = (self._deferred, self.hint), False, hint
        try:
            if self.asked and not self.several:
                raise self.stopped()
            yield
        finally:
            self._deferred, self.hint = before

    def stopped(self, after: str = "") -> Stopped:
        """The exception of the signal that was received.

        Args:
          after: where it came, such as "after step 7".
        """
        return Stopped(" ".join(f"stopped by {self.name} {after}".split()) + f"; {self.hint}", self.status)

    def _handle(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.asked:
            if now - self._received > _ONE_EVENT:
                os.write(2, f"\nstopped by {_NAMES[signal.Signals(number)]} at once\n".encode())
                os._exit(self.status)
            return
        self.asked, self.name, self._received = True, _NAMES[signal.Signals(number)], now
        self.status = 130 if number == signal.SIGINT else 75
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._deferred:
            raise self.stopped()


def interruptible(work: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in another thread and waits for it: signals are handled though it may be in compiled code.

    The thread cannot be stopped: after Stopped the process has to end by `end_process`.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name=getattr(work, "__name__", "work")).start()
    return done.result()


def end_process(status: int) -> None:
    """Ends the process without waiting for its threads, which may be in compiled code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
