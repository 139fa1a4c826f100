"""python -m jaxclip.plan --config=configs/vit_l14.py --topology=v5e:16x16: the step compiled for TPUs not there."""

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
from jaxclip.config import Config, parse
from jaxclip.errors import UserError

_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:16x16, v5p:4x4x8, v6e:8x8, v4:4x4x4 or tpu7x:4x4x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "How many such slices, joined by the data centre's network.")
_MEGACORE = flags.DEFINE_bool("megacore", True, "Of v4: both cores of a chip as one device.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch and the cheapest rematerialisation that fit.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of the table.")

EXIT_USER, EXIT_TOO_LARGE = 2, 3


def main() -> int:
    """Runs the command line, `sys.argv`; returns its exit status: 0 fits, 3 does not, 2 something to mend."""
    logging.set_verbosity(logging.ERROR)
    # Nothing is computed here, whatever devices there are; and libtpu must not look for any.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        return _plan(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def _plan(argv: list[str]) -> int:
    given = command_line.read(argv)
    if not _TOPOLOGY.value:
        raise UserError("give the TPUs to plan for, such as --topology=v5e:16x16")
    # The program does not depend on the data, which need not be there, nor on the words of a vocabulary, without which
    # a config is not whole.
    if "data" in given and "vocabulary" in given.data and not given.data.get("train_vocabulary"):
        given.data.vocabulary = given.data.vocabulary or "of no account"
    config = parse(Config, given)

    from jaxclip.plan import table
    from jaxclip.plan.chips import topology
    from jaxclip.plan.compiling import Plan, compile_step, mesh_for, remat_of
    from jaxclip.plan.search import search

    where = topology(_TOPOLOGY.value, _SLICES.value, _MEGACORE.value)

    def compile_one(config: Config) -> Plan:
        with _progress(f"compiling batch {config.batch_size:,}, remat {remat_of(config)}") as said:
            plan = compile_step(config, where)
            said.append("fits" if plan.fits else "does not fit")
        return plan

    mesh_for(config, where)
    if _SEARCH.value:
        found = search(config, len(where.devices), where.chip.hbm_bytes, compile_one)
        print(
            json.dumps(table.search_dict(found, config.batch_size, where))
            if _JSON.value
            else table.search_table(found, config.batch_size, where)
        )
        return 0 if found.cheapest else EXIT_TOO_LARGE
    plan = compile_one(config)
    print(json.dumps(table.as_dict(plan, where)) if _JSON.value else table.table(plan, where))
    return 0 if plan.fits else EXIT_TOO_LARGE


@contextlib.contextmanager
def _progress(what: str) -> Iterator[list[str]]:
    """Says on standard error what goes on and for how long, and at the end what is put into the list."""
    began, ended = time.monotonic(), threading.Event()
    said: list[str] = []
    # A terminal's line is written over; a log gets a line now and then.
    terminal = sys.stderr.isatty()
    start, end = ("\r", "") if terminal else ("", "\n")

    def tell(more: str, end: str = end) -> None:
        seconds = time.monotonic() - began
        print(f"{start}{what}: {more}{seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    def keep_telling() -> None:
        while not ended.wait(1 if terminal else 15):
            tell("")

    tell("")
    teller = threading.Thread(target=keep_telling, daemon=True)
    teller.start()
    try:
        yield said
    finally:
        ended.set()
        teller.join()
        tell(f"{', '.join(said) or 'failed'} after ", "\n")


if __name__ == "__main__":
    sys.exit(main())
