"""Parallel work in subprocesses, each a fresh Python interpreter."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

# The folder that contains jaxclip, because subprocesses do not inherit this process's import path.
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_workers(command: Sequence[str], work: Sequence[tuple], noted: Callable[[int], None]) -> None:
    """Distributes work among as many processes as there are cores, and waits for them.

    multiprocessing is not used: it would either run the program's main module again in each process, with all of its
    effects, or fork a process in which JAX's threads are running. A worker that fails leaves its work undone; nothing
    is raised.

    Args:
      command: the command of a process that calls `serve_worker`.
      work: tuples of strings and numbers.
      noted: called, from several threads, with the index in `work` of each finished item.
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
        finally:  # an interruption of this process ends the workers too
            for process in running:
                process.kill()


def serve_worker(serve: Callable[[list], Iterable[int]]) -> None:
    """Runs a worker: `serve` processes a list of work and yields the index of each finished item."""
    work = json.load(sys.stdin)
    for place in serve(work):
        print(place, flush=True)
