"""python benchmarks/faults/checkpoints.py [--damages=1000 --loads=500 --commands=50]: damaged files of checkpoints.

A file of the newest checkpoint is damaged: a bit flipped, cut, emptied, filled with noise, removed, a word of its text
changed. Then a run restores (the state must be that of this checkpoint or, with a word, of the one before), and
`jaxclip.load` opens (the embeddings must be right, or it refuses). "Silent" is a value that differs without a word.
"""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib
import random
import shutil
import tempfile

import runs
from runs import ended, made


def damage(path: pathlib.Path, draw: random.Random) -> str:
    """Damages one file of a checkpoint; returns how."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    # Half of the damages fall on the largest file, which has most of the bytes, the rest on any.
    file = max(files, key=lambda file: file.stat().st_size) if draw.random() < 0.5 else draw.choice(files)
    content = bytearray(file.read_bytes())
    kinds = ["bit", "bit", "bit", "byte range", "cut", "emptied", "noise", "removed", "word"]
    kind = draw.choice(kinds)
    if kind == "bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "byte range":
        start = draw.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == "cut":
        del content[draw.randrange(len(content)) :]
    elif kind == "emptied":
        content.clear()
    elif kind == "noise":
        content[:] = draw.randbytes(len(content))
    elif kind == "word":
        place = draw.randrange(len(content))
        content[place : place + 1] = bytes([content[place] ^ 1 if content[place] > 64 else content[place] ^ 2])
    file.unlink()
    if kind != "removed":
        file.write_bytes(content)
    return f"{kind} in {file.relative_to(path).parts[0]}"


def damaged_copy(folder: pathlib.Path, run: str, draw: random.Random) -> str:
    """Copies a run to `copy` and damages its checkpoint of step 30; returns how."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / run, folder / "copy")
    return damage(folder / "copy" / "checkpoints" / "30", draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--loads", type=int, default=500)
    parser.add_argument("--commands", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxclip-damages-"))
    recipe = made(folder, 30)
    done = ended(recipe, folder / "run")
    assert done.status == 0, done.stderr
    draw = random.Random(arguments.seed)
    _restores(folder, draw, arguments.damages)
    _loads(folder, draw, arguments.loads)
    _commands(folder, recipe, draw, arguments.commands)
    shutil.rmtree(folder)


def _restores(folder: pathlib.Path, draw: random.Random, count: int) -> None:
    """Restores in this process, as a run does."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    logging.disable()
    from jaxclip import methods, optimizer, sharding
    from jaxclip.checkpoint import Checkpoints, find, fingerprint, load_model
    from jaxclip.checkpoint import folder as one
    from jaxclip.config import Config, MeshConfig
    from jaxclip.errors import UserError
    from jaxclip.parsing import parse
    from jaxclip.step import Step
    from jaxclip.upgrade import paths

    config = parse(Config, load_model(find(folder / "run"))["config"])
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    step = Step(methods.from_config(config.method), optimizer.create(config.optimizer, 30), mesh)

    def restored(workdir: pathlib.Path):
        checkpoints = Checkpoints(workdir / "checkpoints", 3)
        try:
            return checkpoints.restore(step.abstract_state)
        finally:
            checkpoints.close()

    def content(found) -> tuple:
        return fingerprint.fingerprints(paths(one.pack(found.state))), found.values

    right = {}
    for number in (20, 30):
        shutil.copytree(
            folder / "run" / "checkpoints" / str(number), folder / f"only{number}" / "checkpoints" / str(number)
        )
        right[number] = content(restored(folder / f"only{number}"))
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        how = damaged_copy(folder, "run", draw)
        try:
            found = restored(folder / "copy")
        except UserError:
            outcomes["one line"] += 1
            continue
        except Exception as error:
            outcomes[f"TRACEBACK ({type(error).__name__}, {how})"] += 1
            continue
        if content(found) != right[found.step]:
            outcomes[f"SILENT ({how})"] += 1
        elif found.step == 30:
            outcomes["harmless: all values right"] += 1
        else:
            outcomes["said, went on from the one before" if found.damaged else f"OLDER WITHOUT A WORD ({how})"] += 1
    print(f"{count} damages, restored as a run does:", dict(outcomes), flush=True)


def _loads(folder: pathlib.Path, draw: random.Random, count: int) -> None:
    """`jaxclip.load` in this process."""
    import numpy as np

    import jaxclip
    from jaxclip.errors import UserError

    def embedded(path: pathlib.Path) -> np.ndarray:
        model = jaxclip.load(path)
        images = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
        return np.concatenate([model.encode_text(["red to the left of blue", "gold"]), model.encode_image(images)])

    right = embedded(folder / "run")
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        how = damaged_copy(folder, "run", draw)
        try:
            same = np.array_equal(embedded(folder / "copy"), right)
        except UserError as error:
            outcomes["one line" if "\n" not in str(error) else "SEVERAL LINES"] += 1
        except Exception as error:
            outcomes[f"TRACEBACK ({type(error).__name__}, {how})"] += 1
        else:
            outcomes["harmless: all embeddings right" if same else f"SILENT ({how})"] += 1
    print(f"{count} damages, opened by jaxclip.load:", dict(outcomes), flush=True)


def _commands(folder: pathlib.Path, recipe: pathlib.Path, draw: random.Random, count: int) -> None:
    """The same command, as a process of its own, for ten more steps."""
    outcomes: collections.Counter[str] = collections.Counter()
    whole = ended(recipe, folder / "longer", "--config.steps=40")
    assert whole.status == 0, whole.stderr
    unbroken = runs.figures(folder / "longer")
    shutil.rmtree(folder / "longer" / "checkpoints" / "40")
    for _ in range(count):
        how = damaged_copy(folder, "longer", draw)
        result = ended(recipe, folder / "copy", "--config.steps=40")
        if result.status == 0:
            same = runs.figures(folder / "copy") == unbroken
            said = "is damaged" in result.stderr
            outcomes[
                ("said, " if said else "") + ("equal to unbroken at all steps" if same else f"DIFFERENT ({how})")
            ] += 1
        else:
            lines = result.stderr.count("\n")
            outcomes[f"status {result.status}, {lines} line(s)"] += 1
    print(f"{count} damages, the same command:", dict(outcomes), flush=True)


if __name__ == "__main__":
    main()
