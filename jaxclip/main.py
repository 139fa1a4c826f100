"""python -m jaxclip.main --config=configs/quickstart.py --workdir=DIR: starts or resumes a training run."""

from __future__ import annotations

import os
import pathlib
import signal
import sys

from absl import flags, logging

from jaxclip import command_line
from jaxclip.config import Config
from jaxclip.errors import UserError
from jaxclip.parsing import parse

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is resumed.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Start jax.distributed, for several processes (the default on TPU pods)."
)

EXIT_USER, EXIT_STOPPED = 2, 75


def main() -> int:
    """Runs the command line, `sys.argv`; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    signal.signal(signal.SIGTERM, _stop_early)
    try:
        config, workdir = _parse(sys.argv)
        return _run(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def _stop_early(*_: object) -> None:
    """SIGTERM handler until the training loop, which has something to save, installs its own."""
    print("stopped by SIGTERM before the first step; run the same command again", file=sys.stderr)
    raise SystemExit(EXIT_STOPPED)


def _parse(argv: list[str]) -> tuple[Config, pathlib.Path]:
    config = parse(Config, command_line.read(argv))
    if not _WORKDIR.value:
        raise UserError("give a folder for the run: --workdir=DIR")
    workdir = pathlib.Path(_WORKDIR.value)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; choose a folder")
    return config, workdir


def _run(config: Config, workdir: pathlib.Path) -> int:
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", pathlib.Path.home() / ".cache" / "jaxclip" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    if _DISTRIBUTED.value or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        _join_processes()

    from jaxclip.train import NotFinite, Preempted, train

    try:
        train(config, workdir)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except NotFinite as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _join_processes() -> None:
    """Starts jax.distributed, which detects the other processes on TPU pods and under SLURM."""
    import jax

    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # JAX itself reads only JAX_COORDINATOR_ADDRESS.
    try:
        processes, process = (int(os.environ[name]) if name in os.environ else None for name in names)
        jax.distributed.initialize(num_processes=processes, process_id=process)
    except ValueError as error:
        raise UserError(
            f"--distributed: {command_line.one_line(error)} Outside TPU pods and SLURM, set "
            f"JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            f"{' and '.join(names)}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
