"""python -m jaxclip.plan --config=CONFIG --topology=v5e:16x16: compiles a run's step for TPUs you need not have."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator

from absl import flags, logging

from jaxclip import command_line
from jaxclip.config import Config
from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.parsing import parse

_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:16x16, v5p:4x4x8, v6e:8x8, v4:4x4x4 or tpu7x:4x4x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "Number of such slices, connected by the data center's network.")
_MEGACORE = flags.DEFINE_bool("megacore", True, "v4 only: use both cores of a chip as one device.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch and the cheapest rematerialization that fit.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the table.")

EXIT_TOO_LARGE = 3


def main() -> int:
    """Runs the command line, `sys.argv`; returns the exit status: 0 if it fits, 3 if not, 2 for a user error."""
    logging.set_verbosity(logging.ERROR)
    # Nothing is computed here, whatever devices exist, and libtpu must not look for any.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return run_command(lambda _: _plan(sys.argv))


def _plan(argv: list[str]) -> int:
    settings = command_line.read(argv)
    if not _TOPOLOGY.value:
        raise UserError("give the TPUs to plan for, such as --topology=v5e:16x16")
    # The program depends neither on the data nor on the words of a vocabulary, so neither has to exist. But a config
    # without a vocabulary is invalid.
    if "data" in settings and "vocabulary" in settings.data and not settings.data.get("train_vocabulary"):
        settings.data.vocabulary = settings.data.vocabulary or "unused"
    config = parse(Config, settings)

    from jaxclip.plan import table
    from jaxclip.plan.chips import topology
    from jaxclip.plan.compiling import Plan, compile_step, mesh_for, remat_of
    from jaxclip.plan.search import search

    pod = topology(_TOPOLOGY.value, _SLICES.value, _MEGACORE.value)

    def compile_one(config: Config) -> Plan:
        with _progress(f"compiling batch {config.batch_size:,}, remat {remat_of(config)}") as results:
            plan = compile_step(config, pod)
            results.append("fits" if plan.fits else "does not fit")
        return plan

    mesh_for(config, pod)
    if _SEARCH.value:
        result = search(config, len(pod.devices), pod.chip.hbm_bytes, compile_one)
        print(
            json.dumps(table.search_dict(result, config.batch_size, pod))
            if _JSON.value
            else table.search_table(result, config.batch_size, pod)
        )
        return 0 if result.cheapest else EXIT_TOO_LARGE
    plan = compile_one(config)
    print(json.dumps(table.as_dict(plan, pod)) if _JSON.value else table.table(plan, pod))
    return 0 if plan.fits else EXIT_TOO_LARGE


@contextlib.contextmanager
def _progress(what: str) -> Iterator[list[str]]:
    """Reports an activity and its duration on standard error, and at the end the results appended to the list."""
    start_time, finished = time.monotonic(), threading.Event()
    results: list[str] = []
    # On a terminal, one line is overwritten; a log gets a line every 15 seconds.
    terminal = sys.stderr.isatty()
    start, end = ("\r", "") if terminal else ("", "\n")

    def report(prefix: str, end: str = end) -> None:
        seconds = time.monotonic() - start_time
        print(f"{start}{what}: {prefix}{seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    def report_regularly() -> None:
        while not finished.wait(1 if terminal else 15):
            report("")

    report("")
    reporter = threading.Thread(target=report_regularly, daemon=True)
    reporter.start()
    try:
        yield results
    finally:
        finished.set()
        reporter.join()
        report(f"{', '.join(results) or 'failed'} after ", "\n")


if __name__ == "__main__":
    sys.exit(main())
