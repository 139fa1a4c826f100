"""python benchmarks/faults/signals.py: SIGTERM, SIGINT and SIGHUP in the phases of a run.

For each phase and signal: the exit status, the seconds until the process has ended, and whether the same command then
ends the run with the figures of an unbroken one.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import signal
import tempfile
import time

from runs import begun, ended, figures, made

STEPS = 30
SIGNALS = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGHUP: 75}

# A phase waits in its function until the signal has been sent. The module, the class and the function, and which call.
PHASES = {
    "data are opened": ("jaxclip.run", "", "build", 0),
    "vocabulary": ("jaxclip.data.vocabulary", "", "tokenizer_of", 0),
    "initial state": ("jaxclip.resume", "", "start", 0),
    "config written": ("jaxclip.run", "Run", "write_config", 0),
    "compiling": ("jaxclip.train", "_Trainer", "_compiled", 0),
    "first batch": ("jaxclip.data.loader", "TrainingLoader", "rows", 0),
    "data stall": ("jaxclip.data.loader", "TrainingLoader", "rows", 8),
    "step settled": ("jaxclip.train", "_Trainer", "_settle", 4),
    "save": ("jaxclip.checkpoint.series", "Checkpoints", "save", 0),
    "second save": ("jaxclip.checkpoint.series", "Checkpoints", "save", 1),
    "validation": ("jaxclip.evaluate.validation", "Validation", "__call__", 0),
    "evaluation": ("jaxclip.evaluate.evaluation", "Evaluation", "run", 0),
    "metrics written": ("jaxclip.monitor", "MetricLog", "write", 5),
    "last validation": ("jaxclip.evaluate.validation", "Validation", "__call__", 1),
    "last evaluation": ("jaxclip.evaluate.evaluation", "Evaluation", "run", 1),
    "gallery": ("jaxclip.report.gallery", "", "gallery", 0),
    "report": ("jaxclip.report", "", "write", 0),
}
PATCH = """
import importlib, itertools, os, pathlib, sys, time
module, kind, name, call = os.environ["PHASE"].split(",")
if module:
    owner = importlib.import_module(module)
    owner = getattr(owner, kind) if kind else owner
    function, calls = getattr(owner, name), itertools.count()

    def waiting(*given, **named):
        if next(calls) == int(call):
            pathlib.Path(os.environ["REACHED"]).touch()
            time.sleep(float(os.environ["SECONDS"]))
        return function(*given, **named)

    setattr(owner, name, waiting)
    if not kind:
        for other in list(sys.modules.values()):
            if getattr(other, name, None) is function:
                setattr(other, name, waiting)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="that a phase takes (default: 5)")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxclip-signals-"))
    recipe = made(folder, STEPS, patch=PATCH)
    nothing = {"PHASE": ",,,0", "REACHED": "", "SECONDS": "0"}
    assert ended(recipe, folder / "warm", env=nothing).status == 0
    assert ended(recipe, folder / "unbroken", env=nothing).status == 0
    unbroken = figures(folder / "unbroken")
    wrong = 0
    print(f"{'phase':<18}" + "".join(f"{number.name:>34}" for number in SIGNALS))
    for phase, place in PHASES.items():
        cells = []
        for number, status in SIGNALS.items():
            workdir, reached = folder / "run", folder / "reached"
            shutil.rmtree(workdir, ignore_errors=True)
            reached.unlink(missing_ok=True)
            env = {"PHASE": ",".join(map(str, place)), "REACHED": str(reached), "SECONDS": str(arguments.seconds)}
            process = begun(recipe, workdir, folder / "output.txt", env=env)
            while not reached.exists() and process.poll() is None:
                time.sleep(0.01)
            start = time.monotonic()
            process.send_signal(number)
            found = process.wait(120)
            seconds = time.monotonic() - start
            again = ended(recipe, workdir, env=nothing)
            same = again.status == 0 and figures(workdir) == unbroken
            wrong += found != status or not same
            cells.append(f"{found} after {seconds:.1f} s, {'equal' if same else 'DIFFERENT'}")
        print(f"{phase:<18}" + "".join(f"{cell:>34}" for cell in cells), flush=True)
    shutil.rmtree(folder)
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
