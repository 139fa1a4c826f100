"""A ConVIRT run whose rate falls and that stops early, killed at the moments that decide on that."""

from __future__ import annotations

import json
import pathlib
import signal

import jax
import numpy as np
import pytest
from commands import environment, recipe, rows, run
from saved_state import final_state

from jaxclip import methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.weights import tensor_map
from jaxclip.weights.load import open_weights

EVERY = 2  # steps from one evaluation and checkpoint to the next
# With dropout, whose keys go on as they were, too.
CHANGE = f"""
config.steps = 60
config.eval_every = config.checkpoint_every = {EVERY}
config.keep_best = "validation_loss"
config.data.eval = "pairs.tar"
config.data.flip = True
config.data.captions = "sentence"
config.optimizer.name = "adam"
config.optimizer.learning_rate = 0.03
config.optimizer.schedule = {{"name": "plateau", "patience": 1, "factor": 0.5, "stop": 3}}
config.evals = {{"pairs": {{"task": "zeroshot_retrieval", "data": "pairs.tar"}}}}
text = {{"name": "bert", "vocab_size": 520, "context_length": 12, "width": 16, "layers": 1, "heads": 2, "drop": 0.1}}
config.method = recipes.convirt(config.method.image.to_dict(), text | {{"pool": "max"}}, 8).method
"""
# Ends the process as SIGKILL does at a moment of a step that no signal from outside meets for certain. What is being
# saved then is saved, so that the run goes on from that very step.
KILL = """
import os, signal
from jaxclip import train

moment = os.environ.get("KILL", "")


def dying(owner, name, when):
    function = getattr(owner, name)

    def instead(self, step, *given, **named):
        if moment == f"before {when} {step}":
            die()
        function(self, step, *given, **named)
        if moment == f"after {when} {step}":
            die()

    setattr(owner, name, instead)


def die():
    running[0].checkpoints.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def run_to_the_end(self, profiler, original=train._Trainer.run_to_the_end):
    running.append(self)
    original(self, profiler)


running = []
train._Trainer.run_to_the_end = run_to_the_end
dying(train._Trainer, "_evaluate", "evaluation")
dying(train.Monitor, "write", "row")
"""


def arguments(folder: pathlib.Path, workdir: str) -> list[str]:
    return [f"--config={folder}/tiny.py", f"--workdir={folder}/{workdir}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("plateau")
    recipe(folder, CHANGE, patch=KILL)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder: pathlib.Path) -> pathlib.Path:
    """The workdir of a run that nothing happened to."""
    result = run(arguments(folder, "unbroken"), environment())
    assert result.status == 0, result.stderr
    return folder / "unbroken"


def figures(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl without measured times."""
    times = ("images_per_second", "data_wait")
    return [{key: value for key, value in row.items() if key not in times} for row in rows(workdir)]


def evaluated(workdir: pathlib.Path) -> dict[str, dict]:
    """The metrics of all evaluations by step."""
    return {path.parent.name: json.loads(path.read_text())["metrics"] for path in workdir.glob("evals/*/pairs.json")}


def best(workdir: pathlib.Path) -> dict[str, bytes]:
    """The bytes of every array of the best checkpoint."""
    params, stats = open_weights(workdir / "best").read(sharding.create(MeshConfig(), jax.devices()[:1]))
    arrays = tensor_map.flat(methods.joined(params, stats))
    return {path: np.asarray(array).tobytes() for path, array in arrays.items()}


def moments(workdir: pathlib.Path) -> list[str]:
    """When to kill a run, in this order: at its best evaluation, when its rate falls, after that, and at its end."""
    losses = {row["step"]: row["validation_loss"] for row in rows(workdir) if "validation_loss" in row}
    best, last = min(losses, key=losses.__getitem__), max(losses)
    rates = {row["step"]: row["learning_rate"] for row in rows(workdir)}
    assert last == best + 3 * EVERY, "the rule stops it after three evaluations without improvement"
    assert rates[last] < rates[best], "and the rate falls at each of them"
    return [
        f"after row {best}",
        f"before evaluation {best + EVERY}",
        f"before row {best + EVERY + 1}",
        f"after row {last}",
    ]


@pytest.mark.slow
def test_a_run_killed_when_its_rate_falls_and_when_it_stops_ends_as_if_unbroken(folder, unbroken):
    for moment in moments(unbroken):
        killed = run(arguments(folder, "killed"), environment({"KILL": moment}))
        assert killed.status == -signal.SIGKILL, f"{moment}: {killed.stderr}"
    result = run(arguments(folder, "killed"), environment())
    assert result.status == 0, result.stderr
    last = rows(unbroken)[-1]["step"]
    assert f"stopped early after step {last}" in result.stderr
    assert figures(folder / "killed") == figures(unbroken)
    assert evaluated(folder / "killed") == evaluated(unbroken)
    assert final_state(folder / "killed") == final_state(unbroken)
    assert best(folder / "killed") == best(unbroken)
