"""Runs of `python -m jaxclip.main`: a recipe that takes seconds, and one start-up for many commands."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver

import pytest
from cpu_devices import xla_flags
from paths import ROOT
from PIL import Image

# 50,000 parameters, images of 16 pixels: a step takes milliseconds. Paths start from the recipe's folder.
TINY = """
import pathlib

from jaxclip import recipes


def get_config():
    config = recipes.base()
    config.batch_size = 8
    config.steps = 4
    config.log_every = 1
    config.eval_every = 0
    config.checkpoint_every = 2
    config.optimizer.warmup_steps = 0
    config.data.root = str(pathlib.Path(__file__).parent)
    config.data.train = "pairs.tar"
    config.data.train_vocabulary = 520
    config.method = recipes.clip(
        image_size=16, patch_size=8, width=32, layers=1, text_width=32, text_layers=1, embed_dim=16
    )
    config.method.image.heads = 2
    config.method.text.heads = 2
    config.method.text.vocab_size = 520
    config.method.text.context_length = 12
    return config
"""
_COLORS = ("red", "green", "blue", "white", "black", "gold", "teal", "navy")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended. `stderr` has no lines on work that took long, which a slow machine has more of."""

    status: int
    stdout: str
    stderr: str


def without_phases(text: str) -> str:
    """What a command said, without the lines on work that takes longer than two seconds."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.endswith(" ...\n"))


def png(left: str, right: str = "white", size: int = 20) -> bytes:
    """A square image, its halves of two colors."""
    image = Image.new("RGB", (size, size), right)
    image.paste(left, (0, 0, size // 2, size))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_tar(path: pathlib.Path, members: Mapping[str, bytes]) -> pathlib.Path:
    """Writes a tar of files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def recipe(
    folder: pathlib.Path, change: str = "", name: str = "tiny.py", size: int = 20, patch: str = ""
) -> pathlib.Path:
    """Writes the tiny recipe, and its 64 pairs unless they exist.

    Args:
      folder: for both.
      change: lines of Python that change the recipe, such as `config.steps = 9`.
      name: of the recipe.
      size: of the images. Large ones take longer to read: a way to make steps slow.
      patch: Python that changes the package before the run, for what no data and no config can bring about. It knows
        its folder as FOLDER.
    """
    if not (folder / "pairs.tar").exists():
        pairs = [(f"{left}-{right}", left, right) for left in _COLORS for right in _COLORS]
        images = {f"{key}.png": png(left, right, size) for key, left, right in pairs}
        texts = {f"{key}.txt": f"{left} to the left of {right}".encode() for key, left, right in pairs}
        write_tar(folder / "pairs.tar", dict(sorted((images | texts).items())))
    path = folder / name
    if patch:
        path.with_suffix(".patch.py").write_text(patch)
        change += f"\nexec(pathlib.Path(__file__).with_suffix('.patch.py').read_text(), {{'FOLDER': {str(folder)!r}}})"
    lines = "".join(f"    {line.strip()}\n" for line in change.strip().splitlines())
    path.write_text(TINY.replace("    return config\n", f"{lines}    return config\n"))
    return path


def environment(changes: Mapping[str, str] | None = None, devices: int = 1) -> dict[str, str]:
    """What a command is started with: CPU devices, and nothing that would quieten what a person would see."""
    kept = {key: value for key, value in os.environ.items() if key not in ("TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)} | dict(changes or {})


class Command:
    """A command that was started: what `subprocess.Popen` offers of a process."""

    def __init__(self, process: multiprocessing.process.BaseProcess):
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; minus the signal's number if one ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("jaxclip.main", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid or 0, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str], env: Mapping[str, str], output: pathlib.Path, module: str = "jaxclip.main"
) -> Command:
    """Starts the command of a module, with its output in the file `output`.

    The process is forked from one that has done the imports, which take longer than most runs of tests. Output of the
    imports is lost; `run_anew` has it.
    """
    return _fork(arguments, env, output, output, module)


def run(arguments: Sequence[str], env: Mapping[str, str]) -> Result:
    """Runs the command to its end, in a process as that of `start`."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = pathlib.Path(folder, "stdout"), pathlib.Path(folder, "stderr")
        process = _fork(arguments, env, stdout, stderr)
        try:
            status = process.wait(300)
        finally:
            process.kill()
        return Result(status, stdout.read_text(), without_phases(stderr.read_text()))


def run_anew(arguments: Sequence[str], env: Mapping[str, str]) -> Result:
    """Runs the command to its end as a person would: a new Python, with all that its imports print."""
    command = [sys.executable, "-m", "jaxclip.main", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=dict(env), capture_output=True, text=True, timeout=300)
    return Result(done.returncode, done.stdout, without_phases(done.stderr))


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    """The process that others are forked from; it ends with this one."""
    forkserver.set_forkserver_preload(["commands", "commands_imports"])
    paths = os.pathsep.join([str(ROOT), str(pathlib.Path(__file__).parent)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def _fork(
    arguments: Sequence[str],
    env: Mapping[str, str],
    stdout: pathlib.Path,
    stderr: pathlib.Path,
    module: str = "jaxclip.main",
) -> Command:
    for path in {stdout, stderr}:
        path.write_text("")
    process = _server().Process(target=_main, args=(module, list(arguments), dict(env), str(stdout), str(stderr)))
    process.start()
    return Command(process)


def _main(module: str, arguments: list[str], env: dict[str, str], stdout: str, stderr: str) -> None:
    """What a forked process does."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    for stream, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    sys.argv = [module, *arguments]
    status = 1
    try:
        status = importlib.import_module(module).main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: clearing away TensorFlow and JAX takes a second each time.
    os._exit(status)


def wait_until(condition: Callable[[], bool], process: Command, output: pathlib.Path) -> None:
    """Waits for a condition while a process runs; fails with the process's output if it ends before."""
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} too early: {output.read_text()}"
        assert time.monotonic() < until, f"still waiting: {output.read_text()}"
        time.sleep(0.01)


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """The logged losses by step; fails if a step occurs twice."""
    found = [(row["step"], row["loss"]) for row in rows(workdir)]
    assert len(dict(found)) == len(found), found
    return dict(found)
