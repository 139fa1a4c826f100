"""python -m jaxclip.main --config=configs/quickstart.py --workdir=DIR: trains, or goes on where a run stopped."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import traceback

from absl import flags, logging
from ml_collections import config_flags

from jaxclip.config import Config, parse
from jaxclip.errors import UserError

# A key that the recipe does not have is let through here, so that `parse` names it and the nearest one there is.
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe, such as configs/vit_b16.py.", lock_config=False, accept_new_attributes=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same one again continues it.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Start jax.distributed (several processes; on by itself on TPU pods)."
)

EXIT_USER, EXIT_STOPPED = 2, 75


def main() -> int:
    """Runs the command line, `sys.argv`; returns its exit status."""
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
    """What SIGTERM does until the training loop, which has something to save, takes it over."""
    print("stopped by SIGTERM before the first step; the same command goes on", file=sys.stderr)
    raise SystemExit(EXIT_STOPPED)


def _parse(argv: list[str]) -> tuple[Config, pathlib.Path]:
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]!r} is not a flag; keys are given as --config.KEY=VALUE")
        if _CONFIG.value is None:
            raise UserError("give a recipe: --config=configs/quickstart.py")
        config = parse(Config, _CONFIG.value)
    except UserError:
        raise
    except Exception as error:  # A recipe is a program, in which anything can go wrong.
        raise UserError(_explain(error, argv)) from None
    if not _WORKDIR.value:
        raise UserError("give a folder for the run: --workdir=DIR")
    workdir = pathlib.Path(_WORKDIR.value)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
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
    """Starts jax.distributed, which finds the other processes itself on TPU pods and under SLURM."""
    import jax

    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # JAX itself reads JAX_COORDINATOR_ADDRESS, and not these.
    try:
        processes, process = (int(os.environ[name]) if name in os.environ else None for name in names)
        jax.distributed.initialize(num_processes=processes, process_id=process)
    except ValueError as error:
        raise UserError(
            f"--distributed: {_one_line(error)} Outside TPU pods and SLURM, set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            f"{' and '.join(names)}"
        ) from None


def _explain(error: Exception, argv: list[str]) -> str:
    """One line on what is wrong on the command line, or at which line of the recipe."""
    recipe = _given_recipe(argv)
    path = pathlib.Path(recipe.partition(":")[0])  # What follows a colon is get_config's argument.
    if isinstance(error, OSError) and not path.is_file():
        return f"--config={recipe}: there is no file {path}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SyntaxError):
            return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
        frames = traceback.extract_tb(cause.__traceback__)
        lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).absolute() == path.absolute()]
        if lines:
            return f"{path}, line {lines[-1]}: {type(cause).__name__}: {_one_line(cause)}"
        cause = cause.__context__
    return _one_line(error) if isinstance(error, flags.Error) else f"--config={recipe}: {_one_line(error)}"


def _given_recipe(argv: list[str]) -> str:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


if __name__ == "__main__":
    sys.exit(main())
