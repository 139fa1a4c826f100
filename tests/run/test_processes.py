"""Training in two processes joined by jax.distributed over loopback, compared with training in one."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence

import pytest
from commands import environment, losses, recipe, rows, run, start, wait_until, without_phases, write_tar

from jaxclip.data.sources import open_source
from jaxclip.weights.__main__ import main as convert

STEPS = 6
CHANGE = f"""
config.steps = {STEPS}
config.checkpoint_every = 3
config.data.eval = "pairs.tar"
config.evals = {{"pairs": {{"task": "zeroshot_retrieval", "data": "pairs.tar"}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("processes")
    recipe(folder, CHANGE)
    return folder


@pytest.fixture(scope="module")
def alone(folder: pathlib.Path) -> pathlib.Path:
    """The workdir of one process's run."""
    result = run([f"--config={folder}/tiny.py", f"--workdir={folder}/alone"], environment())
    assert result.status == 0, result.stderr
    return folder / "alone"


class Pair:
    """Two processes of one run, and their output."""

    def __init__(
        self, folder: pathlib.Path, workdir: str, more: Sequence[str] = (), arguments: Sequence[str] = (), **how: str
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        arguments = [*(arguments or (f"--config={folder}/tiny.py", f"--workdir={folder}/{workdir}")), "--distributed"]
        self.workdir = folder / workdir
        self.outputs = [folder / f"{workdir}-{number}.txt" for number in range(2)]
        self.processes = [
            start(
                [*arguments, *more],
                environment(
                    {
                        "JAX_COORDINATOR_ADDRESS": address,
                        "JAX_NUM_PROCESSES": "2",
                        "JAX_PROCESS_ID": str(number),
                    }
                ),
                output,
                **how,
            )
            for number, output in enumerate(self.outputs)
        ]

    def statuses(self) -> list[int]:
        """The exit statuses of both, once they have ended."""
        try:
            return [process.wait(120) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after two minutes: {self.said()}")

    def said(self) -> list[list[str]]:
        """The lines of each, without those of the library that joins them."""
        texts = [without_phases(output.read_text()) for output in self.outputs]
        return [[line for line in text.splitlines() if not line.startswith("[Gloo]")] for text in texts]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def together(folder: pathlib.Path) -> Iterator[Pair]:
    """A run of two processes that has ended."""
    pair = Pair(folder, "together")
    try:
        assert pair.statuses() == [0, 0], pair.said()
        yield pair
    finally:
        pair.kill()


def test_two_processes_have_the_losses_of_one_at_every_step(together, alone):
    expected = losses(alone)
    assert [*expected] == [*range(1, STEPS + 1)]
    assert losses(together.workdir) == pytest.approx(expected, rel=1e-6)
    last, last_expected = rows(together.workdir)[-1], rows(alone)[-1]
    for key in ("grad_norm", "validation_loss", "learning_rate", "logit_scale"):
        assert last[key] == pytest.approx(last_expected[key], rel=1e-5), key


def test_two_processes_evaluate_as_one_and_write_it_once(together, alone):
    found, expected = (
        {path.relative_to(workdir / "evals"): json.loads(path.read_text()) for path in workdir.glob("evals/*/*")}
        for workdir in (together.workdir, alone)
    )
    assert [str(path) for path in found] == [f"{STEPS}/pairs.json"] == [str(path) for path in expected]
    for path in found:
        assert found[path]["metrics"] == expected[path]["metrics"]


def test_only_the_first_process_prints_and_writes_the_report(together):
    first, second = together.said()
    assert "2 device(s)" in first[0] and first[-1].startswith("report: ")
    assert second == []
    assert (together.workdir / "report.html").stat().st_size > 1000


SUITE = """
[colors]
data = "colors.tar"
train = "colors.tar"
classes = "classes.json"

[pairs]
task = "zeroshot_retrieval"
data = "pairs.tar"
"""


def test_two_processes_evaluate_a_suite_as_one(alone, folder):
    records = open_source("pairs.tar", root=str(folder)).read(range(30))
    members = {f"{number:02}.png": record.image for number, record in enumerate(records)}
    members |= {f"{number:02}.cls": b"%d" % (number % 3) for number in range(30)}
    write_tar(folder / "colors.tar", dict(sorted(members.items())))
    (folder / "classes.json").write_text('["red", "green", "blue"]')
    (folder / "suite.toml").write_text(SUITE)
    tasks = "--tasks=zeroshot_classification,zeroshot_retrieval,linear_probe,nearest_neighbors"
    arguments = [str(alone), f"--suite={folder}/suite.toml", f"--data={folder}", tasks, "--keep-embeddings"]
    found = {}
    for name in ("one", "two"):
        output, module = f"--output={folder}/{name}", "jaxclip.evaluate.__main__"
        env = {"JAXCLIP_CACHE": str(folder / f"cache-{name}")}
        if name == "one":
            command = start([*arguments, output], environment(env), folder / "one.txt", module)
            assert command.wait(120) == 0, (folder / "one.txt").read_text()
        else:
            pair = Pair(folder, name, [output], arguments, module=module)
            try:
                assert pair.statuses() == [0, 0], pair.said()
                first, second = pair.said()
                assert first[-1].startswith("results: ") and not second
            finally:
                pair.kill()
        files = (folder / name).glob("*.json")
        found[name] = {path.name: json.loads(path.read_text()) for path in files}
    assert len(found["one"]) == 4 and found["one"].keys() == found["two"].keys()
    for name, result in found["one"].items():
        assert found["two"][name]["metrics"] == pytest.approx(result["metrics"], abs=1e-6), name
        assert found["two"][name]["outcomes"] == result["outcomes"], name


@pytest.mark.slow
def test_two_processes_start_from_public_weights_as_one_does(alone, folder):
    """Weights of 16 pixels, in a run of 24, so that the position embeddings are resized too; sharded over both."""
    assert convert([str(alone), str(folder / "weights"), "--to=huggingface"]) == 0
    more = [f"--config.init_from={folder}/weights", "--config.method.image.image_size=24", "--config.steps=1"]
    result = run([f"--config={folder}/tiny.py", f"--workdir={folder}/alone-24", *more], environment())
    assert result.status == 0, result.stderr
    pair = Pair(folder, "together-24", [*more, "--config.mesh.fsdp=2"])
    try:
        assert pair.statuses() == [0, 0], pair.said()
    finally:
        pair.kill()
    assert losses(pair.workdir) == pytest.approx(losses(folder / "alone-24"), rel=1e-6)


_VIEW = {"crop_scale": (0.5, 1.0), "flip": True}
_IMAGE = {"name": "vit", "image_size": 8, "patch_size": 4, "width": 32, "layers": 1, "heads": 2, "scan": False}
MEMORIES = {
    "moco": ({"name": "moco", "image": _IMAGE, "embed_dim": 8, "queue": 32, "momentum": 0.9}, ("moco",)),
    "pirl": (
        {"name": "pirl", "image": _IMAGE, "records": 64, "jigsaw_size": 30, "patch_size": 8, "negatives": 20},
        ("image", "jigsaw"),
    ),
    "albef": (
        {
            "name": "albef",
            "image": _IMAGE,
            "text": {"vocab_size": 300, "context_length": 16, "width": 32, "layers": 2, "heads": 2, "drop": 0.1},
            "embed_dim": 8,
            "queue": 32,
            "momentum": 0.9,
            "mask_id": 3,
            "negatives_among": 4,
        },
        (),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_two_processes_share_a_queue_or_a_bank(name, tmp_path):
    """And one process goes on where they have stopped, with what it holds."""
    method, views = MEMORIES[name]
    change = f"""
    config.steps = {STEPS}
    config.data.train_vocabulary = {300 if name == "albef" else 0}
    config.data.vocabulary_form = "sentencepiece"
    config.method = type(config)({method!r})
    config.data.views = {dict.fromkeys(views, _VIEW)!r}
    """
    recipe(tmp_path, change)
    command = f"--config={tmp_path}/tiny.py"
    for steps in (STEPS, STEPS + 2):
        alone = run([command, f"--workdir={tmp_path}/alone", f"--config.steps={steps}"], environment())
        assert alone.status == 0, alone.stderr
        if steps == STEPS:
            pair = Pair(tmp_path, "together")
            try:
                assert pair.statuses() == [0, 0], pair.said()
            finally:
                pair.kill()
        else:
            longer = run([command, f"--workdir={pair.workdir}", f"--config.steps={steps}"], environment())
            assert longer.status == 0, longer.stderr
        assert [*losses(pair.workdir)] == [*range(1, steps + 1)]
        assert losses(pair.workdir) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


@pytest.mark.slow
def test_one_process_goes_on_where_two_have_stopped(together, alone, folder):
    found = []
    for workdir in (alone, together.workdir):
        longer = shutil.copytree(workdir, folder / f"{workdir.name}-longer")
        result = run(
            [f"--config={folder}/tiny.py", f"--workdir={longer}", f"--config.steps={STEPS + 4}"], environment()
        )
        assert result.status == 0, result.stderr
        assert f"continuing from the checkpoint of step {STEPS}" in result.stderr
        found.append(losses(longer))
    assert [*found[0]] == [*range(1, STEPS + 5)]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_the_same_step(folder):
    """To the second one, which neither writes nor decides anything else."""
    pair = Pair(folder, "stopped", ["--config.steps=100000", "--config.checkpoint_every=0"])
    try:
        metrics = pair.workdir / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 5, pair.processes[0], pair.outputs[0])
        pair.processes[1].terminate()
        assert pair.statuses() == [75, 75], pair.said()
        steps = [re.match(r"stopped by SIGTERM after step (\d+)", said[-1])[1] for said in pair.said()]
        assert steps[0] == steps[1]
        saved = [path.name for path in (pair.workdir / "checkpoints").iterdir()]
        assert saved == [steps[0]]
        assert rows(pair.workdir)[-1]["step"] == int(steps[0])
    finally:
        pair.kill()


def test_processes_that_cannot_find_each_other_say_what_to_set(folder):
    result = run([f"--config={folder}/tiny.py", f"--workdir={folder}/lost", "--distributed"], environment())
    assert result.status == 2
    assert result.stderr.count("\n") == 1, result.stderr
    for name in ("--distributed", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        assert name in result.stderr
