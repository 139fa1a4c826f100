"""python benchmarks/faults/kills.py [--kills=100 --runs=10]: runs killed at random moments, and what is left of them.

Each run is killed by SIGKILL, started again and killed again, then left to end. Its figures of all steps must equal
those of an unbroken run bit for bit, each step logged once.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

from runs import begun, ended, figures, made

STEPS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxclip-kills-"))
    recipe = made(folder, STEPS)
    warm = ended(recipe, folder / "warm")  # compiles, so that kills fall on other phases too
    assert warm.status == 0, warm.stderr
    start = time.monotonic()
    whole = ended(recipe, folder / "unbroken")
    seconds = time.monotonic() - start
    assert whole.status == 0, whole.stderr
    unbroken = figures(folder / "unbroken")
    kills = equal = begun_saves = after_the_end = 0
    for number in range(arguments.runs):
        workdir = folder / f"run{number}"
        for _ in range(arguments.kills // arguments.runs):
            process = begun(recipe, workdir, folder / "output.txt")
            try:
                process.wait(draw.uniform(0.1, seconds * 0.8))
                after_the_end += 1
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                begun_saves += bool(list((workdir / "checkpoints").glob("*tmp*")))
        result = ended(recipe, workdir)
        assert result.status == 0, result.stderr
        same = figures(workdir) == unbroken
        clean = not list((workdir / "checkpoints").glob("*tmp*"))
        equal += same and clean
        print(f"run {number}: {kills} kills so far, {'equal bit for bit' if same else 'DIFFERENT'}", flush=True)
        shutil.rmtree(workdir)
    print(
        f"{kills} kills over {arguments.runs} runs ({begun_saves} during a save, {after_the_end} came after the end): {equal} runs equal to an unbroken one"
    )
    shutil.rmtree(folder)
    if equal < arguments.runs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
