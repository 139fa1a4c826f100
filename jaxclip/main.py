"""python -m jaxclip.main --config=configs/quickstart.py --workdir=DIR: starts or resumes a training run."""

from __future__ import annotations

import os
import pathlib
import sys

from absl import flags, logging

from jaxclip import command_line, processes
from jaxclip.config import Config
from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.parsing import parse
from jaxclip.paths import local
from jaxclip.stopping import Signals

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is resumed.")
_ALLOW_CHANGE = flags.DEFINE_multi_string(
    "allow_change", [], "A key of the config that may change as the run goes on, such as optimizer.learning_rate."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Start jax.distributed, for several processes (the default on TPU pods)."
)


def main() -> int:
    """Runs the command line, `sys.argv`; returns the exit status, see `exit_status.run_command`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Orbax logs a failed save with all its threads; the run says it in a line.
    logging.set_verbosity(logging.FATAL)
    return run_command(_main)


def _main(signals: Signals) -> None:
    with signals.at_once("nothing has changed, run the same command again"):
        config = parse(Config, command_line.read(sys.argv))
        workdir = _workdir()
        import jax

        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", pathlib.Path.home() / ".cache" / "jaxclip" / "xla")
        jax.config.update("jax_compilation_cache_dir", str(cache))
        signals.several = processes.join(_DISTRIBUTED.value)

        from jaxclip.train import train

        train(config, workdir, allow_change=_ALLOW_CHANGE.value, signals=signals)


def _workdir() -> pathlib.Path:
    if not _WORKDIR.value:
        raise UserError("give a folder for the run: --workdir=DIR")
    workdir = local(_WORKDIR.value, "--workdir")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; choose a folder")
    return workdir


if __name__ == "__main__":
    sys.exit(main())
