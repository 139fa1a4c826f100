"""python -m jaxclip.checkpoint verify|list|prune WORKDIR: a run's checkpoints, examined and deleted."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import time

from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.paths import local
from jaxclip.stopping import Signals


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status: of `verify` 2 if a checkpoint is damaged."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="read every array and compare it with its fingerprint")
    listing = commands.add_parser("list", help="steps, sizes, dates, and what has happened to the run")
    prune = commands.add_parser("prune", help="delete checkpoints")
    for command in (verify, listing, prune):
        command.add_argument("workdir", help="of the run")
    which = prune.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", type=int, help="how many of the newest to keep")
    which.add_argument("--after", type=int, help="delete those of later steps: the run goes on from this one")
    which.add_argument("--damaged", action="store_true", help="delete those that a run has set aside as damaged")
    arguments = parser.parse_args(argv)

    def run(_: Signals) -> int:
        arguments.workdir = local(arguments.workdir, "WORKDIR")
        return _COMMANDS[arguments.command](arguments)

    return run_command(run)


def _verify(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxclip.checkpoint.folder import Damaged, steps, verify

    folder = _checkpoints(arguments.workdir)
    damaged = 0
    for step in steps(folder):
        try:
            number, has_prints = verify(folder / str(step))
        except Damaged as error:
            damaged += 1
            print(f"{step}: damaged: {error.reason}", flush=True)
            continue
        said = "" if has_prints else ", without fingerprints to compare (it is of an older version)"
        print(f"{step}: whole, {number} arrays{said}", flush=True)
    if damaged:
        print(f"error: {damaged} of the checkpoints in {folder} are damaged", file=sys.stderr)
    return 2 if damaged else 0


def _list(arguments: argparse.Namespace) -> int:
    from jaxclip.checkpoint.folder import Damaged, load_model, steps

    folder = _checkpoints(arguments.workdir)
    events: list[dict] = []
    for step in steps(folder):
        path = folder / str(step)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{step:>9}  {size / 2**20:>9,.1f} MiB  {time.strftime('%F %T', time.localtime(path.stat().st_mtime))}")
        try:
            events = events or load_model(path).get("events", [])
        except Damaged as error:
            print(f"           damaged: {error.reason}")
    for event in events:
        print(f"at step {event['step']}: " + _in_words(event))
    return 0


def _in_words(event: dict) -> str:
    if event["event"] == "change":
        return f"config.{event['key']} {event['before']} → {event['after']}"
    return f"went back to {event['to']}, without the batches since: {event['reason']}"


def _prune(arguments: argparse.Namespace) -> int:
    from jaxclip.checkpoint.folder import steps
    from jaxclip.lock import locked

    folder = _checkpoints(arguments.workdir)
    with locked(arguments.workdir):
        found = steps(folder)
        if arguments.damaged:
            names = sorted(path.name for path in folder.glob("*.damaged"))
        elif arguments.keep is not None:
            if arguments.keep < 1:
                raise UserError(f"--keep={arguments.keep}: keep at least 1")
            names = [str(step) for step in found[arguments.keep :]]
        else:
            if arguments.after not in found:
                raise UserError(
                    f"--after={arguments.after}: there are the steps {', '.join(map(str, found)) or 'none'}"
                )
            names = [str(step) for step in found if step > arguments.after]
        for name in names:
            # First out of the way, so that a kill leaves no part of a checkpoint under its name.
            gone = (folder / name).rename(folder / f".{name}.deleted")
            shutil.rmtree(gone)
            print(f"deleted {folder / name}")
    return 0


def _checkpoints(workdir: pathlib.Path) -> pathlib.Path:
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir} is no run's folder: it has no checkpoints")
    return folder


_COMMANDS = {"verify": _verify, "list": _list, "prune": _prune}

if __name__ == "__main__":
    sys.exit(main())
