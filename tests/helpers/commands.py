"""Runs of `python -m jaxclip.main`: a recipe that takes seconds, and many command lines in one process."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

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
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


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


def recipe(folder: pathlib.Path, change: str = "", name: str = "tiny.py", size: int = 20) -> pathlib.Path:
    """Writes the tiny recipe, and its 64 pairs unless they exist.

    Args:
      folder: for both.
      change: lines of Python that change the recipe, such as `config.steps = 9`.
      name: of the recipe.
      size: of the images. Large ones take longer to read: a way to make steps slow.
    """
    if not (folder / "pairs.tar").exists():
        pairs = [(f"{left}-{right}", left, right) for left in _COLORS for right in _COLORS]
        images = {f"{key}.png": png(left, right, size) for key, left, right in pairs}
        texts = {f"{key}.txt": f"{left} to the left of {right}".encode() for key, left, right in pairs}
        write_tar(folder / "pairs.tar", dict(sorted((images | texts).items())))
    path = folder / name
    lines = "".join(f"    {line.strip()}\n" for line in change.strip().splitlines())
    path.write_text(TINY.replace("    return config\n", f"{lines}    return config\n"))
    return path


def environment(changes: Mapping[str, str] | None = None, devices: int = 1) -> dict[str, str]:
    """What a command is started with: CPU devices, and nothing that would quieten what a person would see."""
    kept = {key: value for key, value in os.environ.items() if key not in ("TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)} | dict(changes or {})


def start(arguments: Sequence[str], env: Mapping[str, str], output: pathlib.Path) -> subprocess.Popen:
    """Starts the command, with its output in the file `output`."""
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxclip.main", *arguments], cwd=ROOT, env=dict(env), stdout=file, stderr=file
        )


def run(arguments: Sequence[str], env: Mapping[str, str]) -> Result:
    """Runs the command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxclip.main", *arguments],
        cwd=ROOT,
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def run_many(cases: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], folder: pathlib.Path) -> dict[str, Result]:
    """Runs many command lines, each in a process of its own, forked from one that has done the slow imports.

    So that what a person would see from these imports is not seen here.

    Args:
      cases: arguments and further environment variables, by name.
      folder: for the outputs.
    """
    job = folder / "cases.json"
    job.write_text(json.dumps(list(cases.values())))
    env = environment({"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"})
    subprocess.run([sys.executable, __file__, str(folder)], cwd=ROOT, env=env, check=True)
    statuses = json.loads((folder / "statuses.json").read_text())
    return {
        name: Result(status, *((folder / f"{number}.{stream}").read_text() for stream in ("stdout", "stderr")))
        for number, (name, status) in enumerate(zip(cases, statuses, strict=True))
    }


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, output: pathlib.Path) -> None:
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


def _fork_each(folder: pathlib.Path) -> None:
    import jaxclip.train  # noqa: F401
    from jaxclip import main
    from jaxclip.quiet import quiet_stderr

    with quiet_stderr():
        import clu.metric_writers  # noqa: F401

    statuses = []
    for number, (arguments, env) in enumerate(json.loads((folder / "cases.json").read_text())):
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            os.environ.update(env)
            for stream, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
            sys.argv = ["jaxclip.main", *arguments]
            status = 1
            try:
                status = main.main()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            # Not sys.exit: clearing away TensorFlow and JAX takes a second each time.
            os._exit(status)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    (folder / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    _fork_each(pathlib.Path(sys.argv[1]))
