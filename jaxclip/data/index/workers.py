"""Work that is shared out to other processes, each of them a Python that runs one module."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

# The folder that jaxclip lies in, for processes that do not inherit where this one found it.
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_workers(command: Sequence[str], work: Sequence[tuple], noted: Callable[[int], None]) -> None:
    """Shares out work to as many processes as there are cores, and waits for them.

    multiprocessing is not used: it runs the program's main module again in each process, whatever that does, or else
    copies a process in which JAX's threads are running. A worker that fails leaves its work undone; nothing is raised.

    Args:
      command: starts a process that calls `serve_worker`.
      work: tuples of strings and numbers.
      noted: is called, from several threads, with the place in `work` of what is done.
    """
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(work))
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    running: list[subprocess.Popen] = []

    def follow(first: int) -> None:
        with (
            contextlib.suppress(OSError, ValueError),
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
            ) as process,
        ):
            running.append(process)
            assert process.stdin and process.stdout
            with process.stdin:
                process.stdin.write(json.dumps(work[first::count]).encode())
            for line in process.stdout:
                noted(first + count * int(line))

    with concurrent.futures.ThreadPoolExecutor(max_workers=count) as pool:
        try:
            concurrent.futures.wait([pool.submit(follow, first) for first in range(count)])
        finally:  # if this is an interruption, theirs as well
            for process in running:
                process.kill()


def serve_worker(serve: Callable[[list], Iterable[int]]) -> None:
    """What a worker runs: `serve` does what is in the list it is given, and yields the places of what is done."""
    work = json.load(sys.stdin)
    for place in serve(work):
        print(place, flush=True)
