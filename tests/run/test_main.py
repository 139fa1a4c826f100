"""Errors of command lines, recipes and data: one line that names the cause, and exit status 2."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
from commands import ROOT, Result, environment, losses, png, recipe, run, write_tar

from jaxclip.data import tokenizers


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line that cannot work.

    Attributes:
      says: what its message must contain.
      arguments: besides --config and --workdir, which are left out if they occur here (`--config=` alone for none).
      change: lines of Python that change the recipe.
      file: the whole recipe, if it is not the tiny one.
      devices: that there are.
    """

    says: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    change: str = ""
    file: str = ""
    devices: int = 1


CLASSES_OF = "config.evals = {'x': {'task': 'zeroshot_classification', 'data': 'labels.tar', 'classes': 'FILE'}}"

CASES = {
    # The command line.
    "a misspelt key": Case(("config.data.trian", "config.data.train"), ("--config.data.trian=shapes",)),
    "a misspelt key at the top": Case(("config.batchsize", "config.batch_size"), ("--config.batchsize=3",)),
    "a misspelt key of the method": Case(("config.method.image.widht",), ("--config.method.image.widht=64",)),
    "a misspelt group": Case(("dta", "data"), ("--config.dta.train=shapes",)),
    "a misspelt flag": Case(("workdirr",), ("--workdirr=x",)),
    "a word that is no flag": Case(("shapes", "--config.KEY=VALUE"), ("shapes",)),
    "a wrong type": Case(("config.batch_size", "abc"), ("--config.batch_size=abc",)),
    "a fraction for a whole number": Case(("config.steps", "2.5"), ("--config.steps=2.5",)),
    "a group that is emptied": Case(("--config.evals=", "{}"), ("--config.evals=",)),
    "a group that is not closed": Case(("crop_scale=(0.1,", "never closed"), ("--config.data.crop_scale=(0.1,",)),
    "no recipe": Case(("--config=",), ("--config=",)),
    "no workdir": Case(("--workdir=",), ("--workdir=",)),
    "a workdir in a bucket": Case(("--workdir=gs://bucket/run", "local disk"), ("--workdir=gs://bucket/run",)),
    "a key to allow that is none": Case(
        ("--allow_change=learning_rate", "no such key"), ("--allow_change=learning_rate",)
    ),
    "a workdir that is a file": Case(("tiny.py", "folder"), ("--workdir={folder}/tiny.py",)),
    # The recipe.
    "a recipe that is not there": Case(("{folder}/none.py",), ("--config={folder}/none.py",)),
    "a misspelt key in the recipe": Case(("config.data.trian", "config.data.train"), change="config.data.trian = 'x'"),
    "a wrong type in the recipe": Case(("tiny.py, line ", "'steps'", "4.5"), change="config.steps = 4.5"),
    "a wrong type in a recipe's own dict": Case(
        ("config.data.train_vocabulary", "True"),
        change="config.data = {'train': 'x', 'train_vocabulary': True}",
    ),
    "a syntax error": Case(("recipe.py, line 2",), file="def get_config():\n    return (\n"),
    "a fault in the recipe": Case(
        ("recipe.py, line 2", "ZeroDivisionError"), file="def get_config():\n    return 1 / 0\n"
    ),
    "an import that fails": Case(("recipe.py, line 1", "no_such_module"), file="import no_such_module\n"),
    "a recipe without get_config": Case(("recipe.py", "get_config"), file="config = {}\n"),
    "a recipe that returns nothing": Case(("config",), file="def get_config():\n    return 3\n"),
    # Values that cannot be.
    "a batch that does not divide": Case(
        ("config.batch_size=12", "8 devices", "16"), ("--config.batch_size=12",), devices=8
    ),
    "a mesh of other devices": Case(("config.mesh", "fsdp=3", "8 devices"), ("--config.mesh.fsdp=3",), devices=8),
    "an unknown method": Case(("config.method.name", "clipp"), ("--config.method.name=clipp",)),
    "patches that do not fit": Case(
        ("config.method.image.image_size=7", "patch_size=8"), ("--config.method.image.image_size=7",)
    ),
    "texts too short for a start and an end": Case(
        ("config.method.text.context_length=1",), ("--config.method.text.context_length=1",)
    ),
    "neither steps nor epochs": Case(("steps", "epochs"), ("--config.steps=0",)),
    "an unknown evaluation": Case(
        ("config.evals.x.task", "zeroshot_clasification", "did you mean zeroshot_classification?"),
        change="config.evals = {'x': {'task': 'zeroshot_clasification', 'data': 'pairs.tar'}}",
    ),
    "a key of an evaluation that the recipe has not": Case(
        ("config.evals.other.task: the recipe has no config.evals.other; add it in",),
        ("--config.evals.other.task=zeroshot_retrieval",),
    ),
    "a checkpoint to start from that is not there": Case(
        ("{folder}/none", "does not exist"), ("--config.init_from={folder}/none",)
    ),
    "a part of nothing to start from": Case(
        ("config.init_only", "config.init_from=WEIGHTS"), ("--config.init_only=^image/",)
    ),
    "a part to freeze that is nothing": Case(
        ("config.optimizer.groups[0].match='nose'",), ("--config.optimizer.groups=({'match': 'nose', 'rate': 0.0},)",)
    ),
    # The vocabulary.
    "no vocabulary": Case(("config.data.vocabulary", "train_vocabulary"), ("--config.data.train_vocabulary=0",)),
    "a vocabulary that is not there": Case(
        ("{folder}/none.txt.gz", "openai/CLIP"),
        ("--config.data.train_vocabulary=0", "--config.data.vocabulary=none.txt.gz"),
    ),
    "a vocabulary larger than the model's": Case(
        ("540 tokens", "config.method.text.vocab_size"), ("--config.data.train_vocabulary=540",)
    ),
    # The data.
    "data of no known form": Case(("'pairs'", "PATH.tar"), ("--config.data.train=pairs",)),
    "a split that shapes does not have": Case(("'tarin'", "train"), ("--config.data.train=shapes:tarin",)),
    "a data file that is not there": Case(("{folder}/none.tar",), ("--config.data.train=none.tar",)),
    "a folder of data that is not there": Case(("{folder}/none/pairs.tar",), ("--config.data.root={folder}/none",)),
    "shards of which one is not there": Case(("pairs-00001.tar",), ("--config.data.train=pairs-{00000..00001}.tar",)),
    "validation data that is not there": Case(("{folder}/none.tar",), ("--config.data.eval=none.tar",)),
    "evaluation data that is not there": Case(
        ("{folder}/none.tar",),
        change="config.evals = {'x': {'task': 'zeroshot_retrieval', 'data': 'none.tar'}}",
    ),
    "class names that are not there": Case(
        ("evals.x.classes", "{folder}/classes.json"),
        change="config.evals = {'x': {'task': 'zeroshot_classification', 'data': 'pairs.tar', "
        "'classes': 'classes.json'}}",
    ),
    "fewer validation records than devices": Case(
        ("data.eval: 3 records are too few for 8 devices",), ("--config.data.eval=few.tar",), devices=8
    ),
    "validation data without captions": Case(
        ("data.eval: none of 4 sampled records", "no caption"),
        ("--config.data.eval=labels.tar",),
        change=CLASSES_OF.replace("FILE", "four.json"),
    ),
    "validation data that cannot be read": Case(
        ("data.eval: none of 4 sampled records", "not an image"), ("--config.data.eval=broken.tar",)
    ),
    "a label outside the classes": Case(
        ("config.evals.x.data", "label 2 is outside the 2 classes", "labels.tar"),
        change=CLASSES_OF.replace("FILE", "two.json"),
    ),
    "evaluation data of broken images": Case(
        ("config.evals.x.data", "none of 4 sampled records", "not an image"),
        change="config.evals = {'x': {'task': 'zeroshot_retrieval', 'data': 'broken.tar'}}",
    ),
    "an empty file": Case(("nothing.tar", "empty"), ("--config.data.train=nothing.tar",)),
    "an empty tar": Case(("empty.tar", "empty"), ("--config.data.train=empty.tar",)),
    "a tar without captions": Case(("captionless.tar", "caption"), ("--config.data.train=captionless.tar",)),
    "a tar without images": Case(("no_images.tar", "image"), ("--config.data.train=no_images.tar",)),
    "a tar of broken images": Case(("data.train", "not an image"), ("--config.data.train=broken.tar",)),
    "a file that is no tar": Case(("text.tar", "not a tar"), ("--config.data.train=text.tar",)),
    "a table that is not there": Case(("{folder}/none.csv",), ("--config.data.train=none.csv",)),
    # Resuming in a workdir that holds a run of the tiny recipe.
    "another seed on resume": Case(("config.seed", "9"), ("--workdir={folder}/run", "--config.seed=9")),
    "another batch size on resume": Case(
        ("config.batch_size", "16"), ("--workdir={folder}/run", "--config.batch_size=16")
    ),
    "another model on resume": Case(
        ("config.method.image.width", "64"), ("--workdir={folder}/run", "--config.method.image.width=64")
    ),
    "another learning rate on resume": Case(
        ("config.optimizer.learning_rate",), ("--workdir={folder}/run", "--config.optimizer.learning_rate=1e-5")
    ),
    "fewer steps on resume": Case(
        ("{folder}/run", "step 4", "steps=2"), ("--workdir={folder}/run", "--config.steps=2")
    ),
}


def command(case: Case, folder: pathlib.Path, number: int) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment of a case."""
    arguments = [argument.replace("{folder}", str(folder)) for argument in case.arguments]
    if case.file:
        path = folder / f"{number}-recipe.py"
        path.write_text(case.file)
    else:
        path = recipe(folder, case.change, f"{number}-tiny.py") if case.change else folder / "tiny.py"
    given = {argument.partition("=")[0] for argument in arguments}
    first = [f"--config={path}"] if "--config" not in given else []
    last = [f"--workdir={folder}/{number}"] if "--workdir" not in given else []
    arguments = [argument for argument in arguments if argument not in ("--config=", "--workdir=")]
    return [*first, *arguments, *last], environment(devices=case.devices)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("main")
    recipe(folder)
    write_tar(folder / "empty.tar", {})
    (folder / "nothing.tar").write_bytes(b"")
    (folder / "text.tar").write_text("This is no tar.\n" * 100)
    write_tar(folder / "captionless.tar", {f"{i}.png": png("red") for i in range(4)})
    write_tar(folder / "no_images.tar", {f"{i}.txt": b"a red square" for i in range(4)})
    broken = {f"{i}.{kind}": b"a red square" for i in range(4) for kind in ("png", "txt")}
    write_tar(folder / "broken.tar", broken)
    write_tar(
        folder / "few.tar",
        {f"{i}.{kind}": {"png": png("red"), "txt": b"red"}[kind] for i in range(3) for kind in ("png", "txt")},
    )
    write_tar(
        folder / "labels.tar",
        {f"{i}.{kind}": {"png": png("red"), "cls": b"%d" % i}[kind] for i in range(4) for kind in ("cls", "png")},
    )
    (folder / "four.json").write_text(json.dumps(["a", "b", "c", "d"]))
    (folder / "two.json").write_text(json.dumps(["a", "b"]))
    write_tar(folder / "pairs-00000.tar", {"0.png": png("red"), "0.txt": b"a red square"})
    # The files left by a run of another recipe that was killed during its first save.
    (folder / "early" / "checkpoints" / "2.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    (folder / "early" / "config.json").write_text('{"seed": 5}')
    (folder / "early" / "tokenizer.json").write_text(tokenizers.train(["another recipe"] * 2, 516).to_json())
    return folder


@pytest.fixture(scope="module")
def results(folder: pathlib.Path) -> dict[str, Result]:
    """How every case ended, a run that works first."""
    tiny = f"--config={folder}/tiny.py"
    diverging = ["--config.optimizer.learning_rate=1e30", "--config.steps=40", "--config.checkpoint_every=1"]
    runs = {
        "a run that works": ([tiny, f"--workdir={folder}/run"], environment()),
        "a run that diverges": ([tiny, f"--workdir={folder}/diverged", *diverging], environment()),
        "a run killed before its first checkpoint": ([tiny, f"--workdir={folder}/early"], environment()),
    }
    cases = {name: command(case, folder, number) for number, (name, case) in enumerate(CASES.items())}
    return {name: run(*case) for name, case in (runs | cases).items()}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_that_names_the_culprit_and_status_2(name, results, folder):
    result = results[name]
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    for words in CASES[name].says:
        assert words.replace("{folder}", str(folder)) in result.stderr
    assert result.status == 2
    assert result.stdout == ""


def test_a_mistake_leaves_no_run_behind(results, folder):
    # Python keeps the compiled recipe beside it, unless it is told not to.
    found = {path.name for path in folder.iterdir() if path.is_dir()} - {"__pycache__"}
    assert found == {"run", "diverged", "early"}


def test_a_successful_run_prints_only_its_progress(results):
    result = results["a run that works"]
    assert result.status == 0 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("64 records, ") and "1 device(s), 4 steps of 8 records" in lines[0]
    assert lines[-1].startswith("report: ")
    assert all(line.startswith("step ") for line in lines[1:-1]), result.stderr


def test_without_a_complete_checkpoint_a_run_starts_again_with_the_given_recipe(results, folder):
    result = results["a run killed before its first checkpoint"]
    assert result.status == 0, result.stderr
    assert result.stderr.startswith("64 records, ")
    assert losses(folder / "early") == losses(folder / "run")
    for name in ("config.json", "tokenizer.json"):
        assert (folder / "early" / name).read_text() == (folder / "run" / name).read_text()


def test_a_refused_resume_leaves_the_run_as_it_was(results, folder):
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["seed"], config["steps"]) == (0, 4)
    assert [*losses(folder / "run")] == [1, 2, 3, 4]


def test_a_run_that_diverges_stops_with_status_1_and_names_the_step(results, folder):
    result = results["a run that diverges"]
    assert result.status == 1
    error = result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert error.startswith("error: step ") and ("loss is nan" in error or "grad_norm is " in error), error


def test_nothing_of_or_after_the_step_that_diverged_is_saved(results, folder):
    error = results["a run that diverges"].stderr.splitlines()[-1]
    diverged = int(error.removeprefix("error: step ").partition(":")[0])
    assert 1 < diverged < 40
    saved = [int(path.name) for path in (folder / "diverged" / "checkpoints").iterdir()]
    assert max(saved, default=0) < diverged
    assert f"nothing after step {max(saved)} is saved" in error
    assert max(losses(folder / "diverged")) < diverged


def test_the_papers_recipe_without_its_data_says_how_to_get_it_and_how_to_name_other_data(tmp_path):
    env = environment({"TFDS_DATA_DIR": str(tmp_path)})
    result = run([f"--config={ROOT}/configs/vit_b16.py", f"--workdir={tmp_path}/run"], env)
    assert result.status == 2
    assert result.stderr.count("\n") == 1, result.stderr
    (tmp_path / "vocabulary.txt").write_text("")
    result = run(
        [
            f"--config={ROOT}/configs/vit_b16.py",
            f"--workdir={tmp_path}/run",
            f"--config.data.vocabulary={tmp_path}/vocabulary.txt",
        ],
        env,
    )
    assert result.status == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert "tfds:coco_captions" in result.stderr and result.stderr.startswith("error: data.train: ")
