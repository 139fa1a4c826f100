"""Discovery of evaluations by task, checks before data is read, and JSON in CLIP_benchmark's format."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from commands import recipe, without_phases
from look_up import LookUp, embedded_set, mesh_of

from jaxclip import evaluate, methods, model, recipes
from jaxclip.config import Config
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate import zeroshot_classification, zeroshot_retrieval
from jaxclip.evaluate.__main__ import main
from jaxclip.evaluate.evaluation import to_json
from jaxclip.parsing import parse
from jaxclip.run import build

RETRIEVAL = {"task": "zeroshot_retrieval", "data": "shapes:validation"}
CLASSIFICATION = {"task": "zeroshot_classification", "data": "shapes:seen"}
CLIP = methods.from_config(
    recipes.clip(image_size=16, patch_size=8, width=64, layers=1, text_width=64, text_layers=1, embed_dim=8).to_dict()
)


# An evaluator as a contributor writes it.
MEDIAN_RANK = '''
"""The median rank of each caption's image."""

import dataclasses

import numpy as np

from jaxclip import evaluate
from jaxclip.evaluate.ranking import ranks


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    first: int = 1

    def run(self, encoder, variables, source, skips, prepared):
        embedded = encoder.source(variables, source, skips)
        texts = encoder.texts(variables, [captions[0] for captions in embedded.captions])
        numbers = np.arange(len(texts))
        median = float(np.median(ranks(encoder.mesh, texts, embedded.outputs, numbers, numbers).queries)) + self.first
        return evaluate.Result({"median_rank": median}, f"median rank {median:.1f} of {len(texts)}")
'''


@pytest.fixture
def median_rank(tmp_path, monkeypatch) -> Iterator[None]:
    """The file median_rank.py, found as if it lay in jaxclip/evaluate/."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "median_rank.py").write_text(MEDIAN_RANK)
    monkeypatch.setattr(evaluate, "__path__", [*evaluate.__path__, str(tmp_path / "more")])
    yield
    del sys.modules["jaxclip.evaluate.median_rank"]


def the_error(build, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        build(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_is_its_module_and_the_other_keys_are_its_fields():
    keys = {"pairs": RETRIEVAL, "seen": CLASSIFICATION | {"templates": ["{c}"]}}
    assert evaluate.from_config(keys) == {
        "pairs": zeroshot_retrieval.Evaluator("shapes:validation"),
        "seen": zeroshot_classification.Evaluator("shapes:seen", templates=("{c}",)),
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"data": "shapes"}, "config.evals.x.task is missing"),
        ({"task": "zeroshot_retrieval"}, "config.evals.x.data is missing"),
        (RETRIEVAL | {"task": "retrieval"}, "did you mean zeroshot_retrieval?"),
        (
            RETRIEVAL | {"task": "../zeroshot_retrieval"},
            "config.evals.x.task='../zeroshot_retrieval' is not an evaluat",
        ),
        (RETRIEVAL | {"task": 3}, "config.evals.x.task=3 is not an evaluation"),
        # Modules of the folder that are no evaluators.
        (RETRIEVAL | {"task": "ranking"}, "config.evals.x.task='ranking' is not an evaluation"),
        (RETRIEVAL | {"task": "evaluator"}, "config.evals.x.task='evaluator' is not an evaluation"),
        (RETRIEVAL | {"task": "evaluation"}, "config.evals.x.task='evaluation' is not an evaluation"),
        (RETRIEVAL | {"dta": ""}, "config.evals.x.dta is not a key; did you mean config.evals.x.data?"),
        (RETRIEVAL | {"classes": "a.json"}, "config.evals.x.classes is not a key"),
        (CLASSIFICATION | {"templates": ("a",)}, "config.evals.x.templates: 'a' has no {c}"),
        (CLASSIFICATION | {"classes": 3}, "config.evals.x.classes=3 must be text"),
    ],
)
def test_every_mistake_names_its_key(config, said):
    assert said in the_error(evaluate.from_config, {"x": config})


@pytest.mark.parametrize("names", [("a/b",), ("",), ("..",), (".x",), ("a b",), ("x", "X")])
def test_names_of_evaluations_are_names_of_different_files(names):
    said = the_error(evaluate.from_config, dict.fromkeys(names, RETRIEVAL))
    assert said.startswith(f"config.evals.{names[-1]}: ") and "names the file of its results" in said


def test_retrieval_as_older_checkpoints_have_it_is_read():
    old = RETRIEVAL | {"classes": "", "templates": ["a photo of a {c}."]}
    assert evaluate.from_config({"x": old}) == evaluate.from_config({"x": RETRIEVAL})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RETRIEVAL | {"data": "none.tar"}, "config.evals.x.data: "),
        (CLASSIFICATION | {"classes": "none.json"}, "config.evals.x.classes: no file {folder}/none.json"),
        (CLASSIFICATION | {"data": "pairs.tar"}, "config.evals.x.classes is missing: pairs.tar does not say its class"),
    ],
)
def test_what_an_evaluation_needs_is_opened_at_once(tmp_path, config, said):
    recipe(tmp_path)  # with pairs.tar
    (evaluator,) = evaluate.from_config({"x": config}).values()
    assert said.format(folder=tmp_path) in the_error(evaluate.Evaluation, "x", evaluator, str(tmp_path))


def test_an_evaluator_is_one_file(median_rank, tmp_path):
    """Found by its name, its keys parsed, checked, run, and written to JSON; nothing else knows of it."""
    said = the_error(evaluate.from_config, {"x": {"task": "median_rank", "data": "shapes", "frst": 0}})
    assert "did you mean config.evals.x.first?" in said
    evaluators = evaluate.from_config({"x": {"task": "median_rank", "data": "shapes:validation", "first": 10}})
    evaluate.check(evaluators, CLIP)
    evaluation = evaluate.Evaluation("x", evaluators["x"])
    # Captions a and b find their images first, c finds its own behind both others.
    table = {"a": [1.0, 0.1, 0.0], "b": [0.1, 1.0, 0.0], "c": [0.5, 0.5, 0.1]}
    encoder = LookUp(table, embedded_set(np.eye(3), captions=[["a"], ["b"], ["c"]]))
    result = evaluate.run(evaluation, encoder, None, tmp_path / "x.json", {"model": "clip", "pretrained": "run@1"})
    assert evaluate.summary(result) == "x: median rank 10.0 of 3"
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "dataset": "x",
        "task": "median_rank",
        "language": "en",
        "data": "shapes:validation",
        "options": {"first": 10},
        "metrics": {"median_rank": 10.0},
        "summary": "median rank 10.0 of 3",
        "model": "clip",
        "pretrained": "run@1",
    }


def test_an_error_of_a_run_names_the_evaluation():
    evaluation = evaluate.Evaluation("pairs", zeroshot_retrieval.Evaluator("shapes:validation"))
    assert the_error(evaluation.run, LookUp({}, embedded_set(np.eye(2))), None) == (
        "config.evals.pairs: no image has a caption to retrieve"
    )


def test_a_result_is_json_without_numbers_that_are_not_finite():
    table = evaluate.Table("Rows", ("a", "b"), {"": (0.5, float("nan")), "second": (None, "text")}, fractions=True)
    image = np.full((4, 6, 3), 200, np.uint8)
    result = evaluate.Result(
        metrics={"a": float("inf"), "b": None, "c": 0.5},
        summary="so so",
        headline=("0.5", "c"),
        tables=(table,),
        examples=(evaluate.Example(image, "gray"),),
        further={"classnames": ["cat"]},
    )
    content = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert content["metrics"] == {"a": None, "b": None, "c": 0.5}
    assert content["tables"] == [
        {"title": "Rows", "columns": ["a", "b"], "rows": {"": [0.5, None], "second": [None, "text"]}, "fractions": True}
    ]
    assert content["headline"] == ["0.5", "c"] and content["classnames"] == ["cat"]
    assert content["examples"][0]["image"].startswith("data:image/webp;base64,")


# A method whose model has images and no texts.
ONLY_FEATURES = """
import dataclasses

from flax import nnx

from jaxclip import inputs, methods


class OnlyFeatures(nnx.Module):
    def features(self, images, ctx):
        return images.mean(axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    def inputs(self):
        return {"image": inputs.Image(16)}

    def init(self, rngs):
        return OnlyFeatures()
"""


@pytest.fixture
def only_features(tmp_path, monkeypatch) -> Iterator[methods.Method]:
    """The method of only_features.py, found as if it lay in jaxclip/methods/."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "only_features.py").write_text(ONLY_FEATURES)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    yield methods.from_config({"name": "only_features"})
    del sys.modules["jaxclip.methods.only_features"]


def test_an_unsupported_function_is_a_one_line_error_that_lists_the_supported_ones(only_features):
    evaluators = evaluate.from_config({"x": RETRIEVAL})
    evaluate.check(evaluators, CLIP)
    assert the_error(evaluate.check, evaluators, only_features) == (
        "config.evals.x.task=zeroshot_retrieval needs encode_image and encode_text, which method only_features does "
        "not have (it has features); choose another task or remove it"
    )


def test_a_run_finds_out_what_its_method_cannot_do_before_it_reads_data(only_features, tmp_path):
    config = recipes.base()
    config.steps, config.batch_size = 1, 8
    config.data.train = str(tmp_path / "none.tar")
    config.evals = {"x": RETRIEVAL}
    config.method = {"name": "only_features"}
    assert "needs encode_image and encode_text" in the_error(build, parse(Config, config), tmp_path / "run", None)
    assert not (tmp_path / "run").exists()


def test_the_command_finds_out_what_a_model_cannot_do_before_it_reads_data(only_features, monkeypatch, capsys):
    params, stats = methods.init_variables(only_features, jax.random.key(0))
    encoder = Encoder(only_features, mesh_of(1), "float32", None)
    monkeypatch.setattr(model, "load", lambda *_, **__: model.Model(None, params, stats, encoder))
    assert main(["weights", "--data=none.tar"]) == 2
    assert without_phases(capsys.readouterr().err) == (
        "error: --task=zeroshot_retrieval needs encode_image and encode_text, which method "
        "only_features does not have (it has features); choose another task or remove it\n"
    )


def test_a_tasks_own_keys_are_options_of_the_command(monkeypatch, capsys):
    asked = []
    method = types.SimpleNamespace(task="zeroshot_retrieval")
    monkeypatch.setattr(model, "load", lambda *_, **__: types.SimpleNamespace(method=method, config=None))
    monkeypatch.setattr(evaluate, "from_config", lambda configs: asked.append(configs) or sys.exit(0))

    def given(*options: str) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["weights", "--data=a/b.tar", *options])
        return asked.pop()["b"]

    assert given("--prefix=a photo of ") == {
        "task": "zeroshot_retrieval",
        "data": "a/b.tar",
        "prefix": "a photo of ",
    }
    assert given("--prefix={[]:1}")["prefix"] == "{[]:1}" and given("--prefix=1")["prefix"] == "1"
    probe = given("--task=linear_probe", "--train=t-*.tar", "--shots=4", "--fractions=0.1,0.5", "--seeds=5")
    assert probe == {
        "task": "linear_probe",
        "data": "a/b.tar",
        "train": "t-*.tar",
        "shots": (4,),
        "fractions": (0.1, 0.5),
        "seeds": 5,
    }
    for options, said in {
        ("--data=x", "--task=linear_probe", "--shot=4"): "--shot=4 is no option; those of linear_probe are --train, ",
        ("--data=x", "--prefix"): "--prefix: there is no such option; those of a --task are written --KEY=VALUE",
        ("--data=x", "train=y"): "train=y: there is no such option; those of a --task are written --KEY=VALUE",
        ("--prefix=a",): "--prefix=a: there is no such option, or it is one of a --task; give --data=SOURCE with it",
    }.items():
        assert main(["weights", *options]) == 2
        assert f"error: {said}" in capsys.readouterr().err


def test_the_command_names_options_and_no_keys_of_a_recipe(tmp_path, monkeypatch, capsys):
    method = types.SimpleNamespace(task="zeroshot_retrieval")
    monkeypatch.setattr(model, "load", lambda *_, **__: types.SimpleNamespace(method=method, config=None))
    monkeypatch.setattr(evaluate, "check", lambda *_: None)
    for options, said in {
        (): "--train is missing",
        ("--train=shapes", "--neighbors=many"): "--neighbors[0]='many' must be a whole number, not text",
        ("--train=none.tar",): "--train: none.tar does not exist or is not a file; check the path",
    }.items():
        assert main(["weights", "--data=shapes:seen", "--task=nearest_neighbors", *options]) == 2
        assert without_phases(capsys.readouterr().err) == f"error: {said}\n"
