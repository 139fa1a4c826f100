"""Hostile weight files: a one-line error or usable weights; no crash, no code run, bounded memory and time."""

from __future__ import annotations

import faulthandler
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hostile_npz import hostile as hostile_npz
from hostile_weights import TRAP, Hostile, hostile
from paths import ROOT

from jaxclip.errors import UserError
from jaxclip.weights.formats.safetensors import open_tensors

MEMORY = 3 << 29  # address space beyond that of the interpreter at the start; files are mapped into it
RESIDENT = 300 << 20  # what may come to be used of it; the largest of the files is 8 MB long
SECONDS = 5  # of CPU time, a limit on what hangs; a file takes milliseconds
pytestmark = pytest.mark.hostile
PROGRAM = "import sys, test_weights_hostile as tests; tests.run_all(sys.argv[1])"

# Odd, but each is read as what it says it is: the same tensor twice, names that would be no file's (nothing is written
# by them), a big-endian V2, an array of Python 2 or of True by 6, lengths that zipfile can do without.
USABLE = {
    *("more-fields", "name-twice-the-same", "name-twice-escaped"),
    *(f"descr-{number}-{way}" for number in (20, 32) for way in ("stored", "packed")),
    *(f"npy-shape-{number}-{way}" for number in (6, 24, 26, 28) for way in ("stored", "packed")),
    *(f"member-{number}" for number in (0, 1, 2, 3, 4, 5, 6, 10, 17, 18, "nul")),
    *(f"packed-packed-{size}" for size in (1 << 16, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)),
    *("member-in-member", "deflate-without-end", "deflate-and-more"),
}

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Not "compile": NumPy parses the header of an array by ast.literal_eval, which does. Running it would be "exec".
_ACTS = re.compile(
    r"exec|import|pickle\.find_class|marshal\.|ctypes\.|socket\.|subprocess\.Popen|shutil\..*"
    r"|os\.(system|exec|fork|forkpty|posix_spawn|startfile|link|symlink|chmod|chown|truncate|setxattr|mkdir|remove|rename)"
)
_noted: list[str] | None = None


def _note(event: str, arguments: tuple) -> None:
    """Notes what acts on the world; Python reports it here (PEP 578)."""
    if _noted is not None and (_ACTS.fullmatch(event) or event == "open" and arguments[2] & _WRITES):
        _noted.append(f"{event} {arguments}"[:200])


def everything() -> Iterator[tuple[str, Hostile]]:
    yield from hostile()
    yield from hostile_npz()


class TooLong(BaseException):
    """Not to be caught by what it interrupts."""


def _stop(*_: object) -> None:
    raise TooLong


def outcome(path: pathlib.Path) -> str:
    """What comes of opening a file and reading all of it: "", or the error's line, or what went wrong."""
    try:
        for name, tensor in open_tensors(path).items():
            values = tensor.read()
            if not name.isprintable() or values.shape != tensor.shape or values.dtype != tensor.dtype:
                return f"wrong: {name!r} is {values.dtype}{values.shape} and not {tensor.dtype}{tensor.shape}"
            values.tobytes()
    except UserError as error:
        line = str(error)
        ours = (
            str(path.parent) in line and line.isprintable() and len(line) - len(str(path)) * line.count(str(path)) < 500
        )
        return line if ours else f"wrong: {line!r}"
    except (Exception, TooLong) as error:
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"
    return ""


def most_resident() -> int:
    """The most memory that this process ever used, in bytes. (getrusage would count its parent's.)"""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10


def run_all(place: str) -> None:
    """Opens every hostile file in this process, of limited memory.

    Prints {"files": [[name, outcome, acts, refused], ...], "resident": bytes beyond those at the start}.
    """
    global _noted
    os.chdir(place)
    "".encode("cp437")  # which zipfile imports on first use
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    signal.signal(signal.SIGPROF, _stop)
    faulthandler.dump_traceback_later(1200, exit=True)
    sys.addaudithook(_note)
    outcomes, resident = [], most_resident()
    for number, (name, made) in enumerate(everything()):
        path = made.write(pathlib.Path(place, str(number)))
        _noted = acts = []
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        said = outcome(path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _noted = None
        for file in path.parent.iterdir():
            file.unlink()
        outcomes.append((name, said, acts, made.refused))
    print(json.dumps({"files": outcomes, "resident": most_resident() - resident}))


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict:
    place = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place)],
        cwd=ROOT / "tests/weights",
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(place.rglob(TRAP))
    return json.loads(done.stdout)


def test_there_are_hostile_files_enough():
    made = list(everything())
    assert len(made) > 1000
    assert len({name for name, _ in made}) == len(made)
    assert len(
        {(*sorted(each.files.items()), each.hole, each.tail, *each.links.items()) for _, each in made}
    ) > 0.98 * len(made)


def test_each_is_refused_in_one_line_that_names_it(ran):
    wrong = [
        (name, said)
        for name, said, _, refused in ran["files"]
        if said.startswith("wrong") or refused and not said and name not in USABLE
    ]
    assert not wrong


def test_none_of_them_is_run_or_writes(ran):
    assert not [(name, acts) for name, _, acts, _ in ran["files"] if acts]


def test_all_of_them_take_little_memory(ran):
    assert ran["resident"] < RESIDENT


def test_some_files_with_changed_bytes_open_and_some_do_not(ran):
    flipped = [bool(said) for _, said, _, refused in ran["files"] if not refused]
    assert 0 < sum(flipped) < len(flipped)
