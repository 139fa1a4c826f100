"""The lock of a workdir: one run at a time writes into it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from jaxclip.errors import UserError
from jaxclip.progress import phase

FILE = ".run.lock"
_EVERY = 10.0  # seconds after which the owner touches the file again


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[str]:
    """Keeps other runs out of a workdir, which is made if it is missing.

    On one machine the system's own lock tells whether the owner still runs, and ends with it, however it ends. Other
    machines, whose file system may not share locks, wait half a minute to see whether the owner touches the file: a run
    that was moved to another machine by its launcher must not be refused for the sake of its own past.

    Yields:
      A line on a run that ended without releasing the lock; empty if there was none.

    Raises:
      UserError: another process writes in the workdir, or the folder cannot be written.
    """
    path = workdir / FILE
    made = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
    with file:
        owner = _owner(file)
        if not _lock(file) or _is_alive_elsewhere(owner, path):
            raise UserError(
                f"another run writes in {workdir}: process {owner.get('pid', '?')} on {owner.get('host', '?')}, since "
                f"{owner.get('since', '?')}; stop it, or give another --workdir"
            )
        _write_owner(file)
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, ended), daemon=True, name="workdir lock")
        heart.start()
        try:
            yield f"process {owner['pid']} on {owner['host']} ended without releasing the workdir" if owner else ""
        finally:
            ended.set()
            heart.join()
            _release(file)
            with contextlib.suppress(OSError):
                if made and not _content(workdir):
                    # A run that could not begin leaves no folder.
                    path.unlink()
                    for folder in workdir.iterdir():
                        folder.rmdir()
                    workdir.rmdir()


def _content(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The files of a run, besides its lock."""
    return [path for path in workdir.rglob("*") if path.is_file() and path.name != FILE]


def _beat(path: pathlib.Path, ended: threading.Event) -> None:
    with contextlib.ExitStack() as again:
        while not ended.wait(_EVERY):
            # The folder may be gone, which the run's own writes report; they may also make it anew, without the lock.
            with contextlib.suppress(OSError):
                if path.exists():
                    os.utime(path)
                elif path.parent.exists():
                    file = again.enter_context(path.open("a+"))
                    _lock(file)
                    _write_owner(file)
                    again.callback(_release, file)


def _release(file: Any) -> None:
    with contextlib.suppress(OSError):
        _write(file, "")


def _write_owner(file: Any) -> None:
    _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}))


def _lock(file: Any) -> bool:
    """Takes the system's lock; True as well where there are none."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _owner(file: Any) -> dict[str, Any]:
    """Who wrote the file last; empty if it was released, or says nothing that can be read."""
    file.seek(0)
    try:
        content = json.loads(file.read())
        return {name: content[name] for name in ("pid", "host", "since")}
    except (ValueError, KeyError, TypeError):
        return {}


def _is_alive_elsewhere(owner: dict[str, Any], path: pathlib.Path) -> bool:
    """Whether the owner, if it is on another machine, touches the file within three times of its doing so."""
    if not owner or owner["host"] == socket.gethostname():
        return False
    last = path.stat().st_mtime_ns
    with phase(f"waiting for a sign of process {owner['pid']} on {owner['host']}, which has {path.parent}"):
        until = time.monotonic() + 3 * _EVERY
        while time.monotonic() < until:
            time.sleep(_EVERY / 10)
            if path.stat().st_mtime_ns != last:
                return True
    return False


def _write(file: Any, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
