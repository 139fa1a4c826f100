"""python benchmarks/faults/workdirs.py: what is done to the workdir of a run, and what the run does then.

Each line: the case, the exit status, how many lines were printed, the last of them, and whether the figures of all
steps are those of an unbroken run. A full and a read-only disk need the right to mount a tmpfs; they are left out
without it.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable

from runs import begun, commands, ended, figures, made, steps

STEPS = 30


def main() -> None:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxclip-workdirs-"))
    recipe = made(folder, STEPS)
    # Half of a run, and what it has to become.
    assert ended(recipe, folder / "half", "--config.steps=20").status == 0
    assert ended(recipe, folder / "unbroken").status == 0
    expected = figures(folder / "unbroken")
    shutil.copytree(folder / "half", folder / "whole")
    assert ended(recipe, folder / "whole").status == 0

    def report(name: str, result: commands.Result, workdir: pathlib.Path) -> None:
        # A run of 20 steps that goes on to 30 has had another schedule than one of 30 from the start.
        right = [_figures(folder / "whole"), expected]
        same = "equal" if _figures(workdir) in right else f"{len(_figures(workdir))} steps logged"
        last = (result.stderr.splitlines() or [""])[-1].replace(str(folder), "")
        print(f"{name}: {result.status}, {result.stderr.count(chr(10))} lines, {same}: {last[:160]}", flush=True)

    for name, damage in DAMAGES.items():
        workdir = folder / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(folder / "half", workdir)
        damage(workdir)
        report(name, ended(recipe, workdir), workdir)
    _index(folder, recipe, report)
    _removed(folder, recipe, report)
    _second(folder, recipe, report)
    _limited(folder, recipe, report)
    _mounted(folder, recipe, report)
    shutil.rmtree(folder)


def _figures(workdir: pathlib.Path) -> dict[int, tuple]:
    return figures(workdir) if (workdir / "metrics.jsonl").exists() else {}


def _write(name: str, change: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], None]:
    return lambda workdir: (workdir / name).write_bytes(change((workdir / name).read_bytes())) and None


def _rotated(content: bytes) -> bytes:
    """A tokenizer whose ids of single characters are rotated."""
    tokenizer = json.loads(content)
    vocabulary = tokenizer["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)[:256]
    return json.dumps(
        tokenizer
        | {
            "model": tokenizer["model"]
            | {"vocab": vocabulary | {name: vocabulary[names[(place + 1) % 256]] for place, name in enumerate(names)}}
        }
    ).encode()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "nothing": lambda workdir: None,
    "config.json emptied": _write("config.json", lambda content: b""),
    "config.json cut": _write("config.json", lambda content: content[:100]),
    "config.json removed": lambda workdir: (workdir / "config.json").unlink(),
    "tokenizer.json emptied": _write("tokenizer.json", lambda content: b""),
    "tokenizer.json cut": _write("tokenizer.json", lambda content: content[:100]),
    "tokenizer.json removed": lambda workdir: (workdir / "tokenizer.json").unlink(),
    "tokenizer.json with rotated ids": _write("tokenizer.json", _rotated),
    "metrics.jsonl cut": _write("metrics.jsonl", lambda content: content[:-30]),
    "metrics.jsonl with three bytes that are not UTF-8": _write(
        "metrics.jsonl", lambda content: content + b"\xff\xfe\xfd\n"
    ),
    "an empty folder as the newest checkpoint": lambda workdir: (workdir / "checkpoints" / "25").mkdir(),
    "a lock that nobody holds": lambda workdir: (
        (workdir / ".run.lock").write_text('{"pid": 1, "host": "elsewhere", "since": "2000-01-01 00:00:00"}')
        and os.utime(workdir / ".run.lock", (0, 0))
    ),
}


def _index(folder: pathlib.Path, recipe: pathlib.Path, report: Callable) -> None:
    """The kept index of the data: damaged while no run uses it."""
    env = {"JAXCLIP_CACHE": str(folder / "cache")}
    assert ended(recipe, folder / "indexed", env=env).status == 0
    (index,) = (folder / "cache" / "tar-index").glob("*.index")
    content = index.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    for name, damaged in {
        "a flipped bit": bytes(flipped),
        "its half": content[: len(content) // 2],
        "nothing": b"",
    }.items():
        shutil.rmtree(folder / "run", ignore_errors=True)
        index.write_bytes(damaged)
        report(f"an index with {name}", ended(recipe, folder / "run", env=env), folder / "run")
        assert index.read_bytes() == content


def _removed(folder: pathlib.Path, recipe: pathlib.Path, report: Callable) -> None:
    """The workdir is removed at step 10."""
    workdir, output = folder / "removed", folder / "output.txt"
    process = begun(recipe, workdir, output)
    commands.wait_until(lambda: 10 in steps(workdir), process, output)
    shutil.rmtree(workdir, ignore_errors=True)
    status = process.wait(120)
    there = sorted(path.name for path in workdir.iterdir())
    result = commands.Result(status, "", commands.without_phases(output.read_text()))
    report(f"workdir removed under the run (then there: {', '.join(there)})", result, workdir)


def _second(folder: pathlib.Path, recipe: pathlib.Path, report: Callable) -> None:
    """A second run in the same workdir."""
    workdir, output = folder / "twice", folder / "output.txt"
    process = begun(recipe, workdir, output)
    commands.wait_until(lambda: 10 in steps(workdir), process, output)
    report("a second run in the workdir", ended(recipe, workdir), workdir)
    status = process.wait(120)
    report("the first one", commands.Result(status, "", commands.without_phases(output.read_text())), workdir)


def _limited(folder: pathlib.Path, recipe: pathlib.Path, report: Callable) -> None:
    """A limit on the size of files, then none."""
    workdir = folder / "limited"
    command = f"ulimit -f 300; exec {commands.sys.executable} -m jaxclip.main --config={recipe} --workdir={workdir}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=commands.ROOT, env=commands.environment(), capture_output=True, text=True
    )
    report("files limited to 300 kB", commands.Result(done.returncode, "", done.stderr), workdir)
    report("the same command without the limit", ended(recipe, workdir), workdir)


def _mounted(folder: pathlib.Path, recipe: pathlib.Path, report: Callable) -> None:
    """A disk of 1.4 MB, then a larger one, then read-only."""
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        print("a full disk: no right to mount one")
        return
    try:
        report("a full disk", ended(recipe, disk / "run"), disk / "run")
        report("a full disk again", ended(recipe, disk / "run"), disk / "run")
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        report("the disk with room", ended(recipe, disk / "run"), disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        report("a read-only disk", ended(recipe, disk / "run"), disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
