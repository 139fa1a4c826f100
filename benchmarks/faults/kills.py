"""python benchmarks/faults/kills.py [--kills=100]: runs killed at random moments, and what is left of them.

Each run is killed by SIGKILL up to ten times, then left to end. Its figures of all steps must equal
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

STEPS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
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
    kills = saving = runs = equal = 0
    while kills < arguments.kills:
        workdir, number = folder / f"run{runs}", 0
        while number < 10 and _killed(recipe, workdir, folder / "output.txt", draw.uniform(0.1, 0.7 * seconds)):
            number += 1
            saving += bool(list((workdir / "checkpoints").glob("*tmp*")))
        result = ended(recipe, workdir)
        assert result.status == 0, result.stderr
        same = figures(workdir) == unbroken and not list((workdir / "checkpoints").glob("*tmp*"))
        runs, kills, equal = runs + 1, kills + number, equal + same
        print(f"run {runs}: {number} kills, {'equal bit for bit' if same else 'DIFFERENT'}", flush=True)
        shutil.rmtree(workdir)
    print(f"{kills} kills over {runs} runs, {saving} of them during a save: {equal} runs equal to an unbroken one")
    shutil.rmtree(folder)
    if equal < runs:
        raise SystemExit(1)


def _killed(recipe: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path, seconds: float) -> bool:
    """Starts the run and kills it after so many seconds; False if it ended before."""
    process = begun(recipe, workdir, output)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


if __name__ == "__main__":
    main()
