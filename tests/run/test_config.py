"""Config parsing: a one-line error for every mistake, which names the key."""

from __future__ import annotations

import copy
import dataclasses
import enum
import importlib
import importlib.util
import json
import math
import shutil
import sys
from typing import Any

import pytest
from ml_collections import ConfigDict
from paths import ROOT

from jaxclip import methods, recipes
from jaxclip.config import Config, DataConfig, GroupConfig, MeshConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.parsing import defaults, flatten, parse, to_dict

CONFIGS = ROOT / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py") if "def get_config" in path.read_text())
ABSENT = enum.Enum("Absent", "ABSENT").ABSENT  # its name, unlike an address, is the same in every process

SMALLEST = {
    "seed": 0,
    "steps": 10,
    "batch_size": 8,
    "data": {"train": "shapes", "train_vocabulary": 300},
    "method": {"name": "clip"},
    "optimizer": {"learning_rate": 1e-3},
}
GROUP = {"match": "^image/", "rate": 0.5}
EVALUATION = {"task": "zeroshot_retrieval", "data": "shapes"}
CLIP = recipes.clip(
    image_size=32, patch_size=8, width=64, layers=2, text_width=64, text_layers=2, embed_dim=32
).to_dict()


def changed(config: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy with one key set, or removed if the value is ABSENT."""
    config = copy.deepcopy(config)
    *path, name = dotted.split(".")
    inner = config
    for part in path:
        inner = inner.setdefault(part, {})
    if value is ABSENT:
        del inner[name]
    else:
        inner[name] = value
    return config


def the_error(build, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        build(*arguments)
    return str(caught.value)


def test_a_smallest_config_gets_the_defaults():
    config = parse(Config, SMALLEST)
    assert config.data == DataConfig(train="shapes", train_vocabulary=300)
    assert config.optimizer == OptimizerConfig(learning_rate=1e-3)
    assert config.mesh == MeshConfig(data=-1, fsdp=1)
    assert (config.precision, dict(config.evals), config.init_from) == ("auto", {}, "")


def test_a_config_dict_and_a_plain_dict_parse_to_the_same():
    assert parse(Config, ConfigDict(SMALLEST)) == parse(Config, SMALLEST)


WRONG = [
    # Keys that are not there.
    ("batchsize", 8, "config.batchsize is not a key; did you mean config.batch_size?"),
    ("data.trian", "shapes", "config.data.trian is not a key; did you mean config.data.train?"),
    ("optimizer.learning_rte", 0.1, "did you mean config.optimizer.learning_rate?"),
    ("mesh.zzzz", 1, "config.mesh.zzzz is not a key; the keys are data, fsdp"),
    ("batch_size", ABSENT, "config.batch_size is missing"),
    ("data.train", ABSENT, "config.data.train is missing"),
    ("optimizer.learning_rate", ABSENT, "config.optimizer.learning_rate is missing"),
    # Wrong types.
    ("steps", "many", "config.steps='many' must be a whole number, not text"),
    ("steps", 10.0, "config.steps=10.0 must be a whole number, not a number"),
    ("steps", True, "config.steps=True must be a whole number, not True or False"),
    ("steps", None, "config.steps=None must be a whole number, not NoneType"),
    ("data.flip", 1, "config.data.flip=1 must be True or False, not a whole number"),
    ("data.train", ("a.tar",), "config.data.train[0]='a.tar' must be a tuple"),
    ("optimizer.learning_rate", "1e-3", "config.optimizer.learning_rate='1e-3' must be a number, not text"),
    ("optimizer", 1e-3, "config.optimizer must hold keys (learning_rate, "),
    ("evals", ("seen",), "config.evals=('seen',) must hold keys"),
    ("evals.seen", "shapes", "config.evals.seen='shapes' must hold keys"),
    ("method", "clip", "config.method='clip' must hold keys"),
    # Tuples.
    ("data.crop_scale", 0.5, "config.data.crop_scale=0.5 must be a tuple"),
    ("data.crop_scale", (0.5,), "config.data.crop_scale=(0.5,) must have 2 entries"),
    ("data.crop_scale", (0.1, 0.5, 1.0), "config.data.crop_scale=(0.1, 0.5, 1.0) must have 2 entries"),
    ("data.crop_scale", (0.5, "1"), "config.data.crop_scale[1]='1' must be a number, not text"),
    ("data.caption_templates", "a {c}", "config.data.caption_templates='a {c}' must be a tuple"),
    ("data.caption_templates", ("a {c}", 2), "config.data.caption_templates[1]=2 must be text"),
    # Values that nothing can be done with.
    ("precision", "float16", "config.precision='float16' must be one of 'auto', 'float32', 'bfloat16'"),
    ("batch_size", 0, "config.batch_size=0 must be at least 1"),
    ("log_every", 0, "config.log_every=0 must be at least 1"),
    ("keep_checkpoints", 0, "config.keep_checkpoints=0 must be at least 1"),
    ("seed", -1, "config.seed=-1 must not be negative"),
    ("steps", -1, "config.steps=-1 must not be negative"),
    ("steps", 0, "config.steps=0: give steps, or epochs"),
    ("epochs", -0.5, "config.epochs=-0.5 must not be negative"),
    ("epochs", math.nan, "config.epochs=nan must not be negative"),
    ("eval_every", -1, "config.eval_every=-1 must not be negative"),
    ("checkpoint_every", -1, "config.checkpoint_every=-1 must not be negative"),
    ("data.crop_scale", (0.0, 1.0), "config.data.crop_scale=(0.0, 1.0) must be"),
    ("data.crop_scale", (0.9, 0.5), "config.data.crop_scale=(0.9, 0.5) must be"),
    ("data.crop_scale", (0.5, 1.5), "config.data.crop_scale=(0.5, 1.5) must be"),
    ("data.train_vocabulary", -300, "config.data.train_vocabulary=-300 must not be negative"),
    ("data.vocabulary", "bpe.txt.gz", "config.data.vocabulary='bpe.txt.gz': give data.vocabulary=PATH or"),
    ("data.caption_templates", ("a {c}", "dog"), "config.data.caption_templates: 'dog' has no {c}"),
    ("optimizer.learning_rate", -1e-3, "config.optimizer.learning_rate=-0.001 must not be negative"),
    ("optimizer.learning_rate", math.nan, "config.optimizer.learning_rate=nan must not be negative"),
    ("optimizer.warmup_steps", -1, "config.optimizer.warmup_steps=-1 must not be negative"),
    ("optimizer.weight_decay", -0.1, "config.optimizer.weight_decay=-0.1 must not be negative"),
    ("optimizer.clip_norm", -1.0, "config.optimizer.clip_norm=-1.0 must not be negative"),
    ("optimizer.beta1", 1.0, "config.optimizer.beta1=1.0 must be at least 0 and below 1"),
    ("optimizer.beta2", -0.1, "config.optimizer.beta2=-0.1 must be at least 0 and below 1"),
    ("optimizer.eps", 0.0, "config.optimizer.eps=0.0 must be above 0"),
    ("optimizer.name", "lion", "config.optimizer.name='lion' must be one of 'adamw', 'adam', 'sgd', 'muon'"),
    ("optimizer.average_decay", 1.0, "config.optimizer.average_decay=1.0 must be at least 0 and below 1"),
    ("optimizer.lookahead", (0, 0.5), "config.optimizer.lookahead=(0, 0.5) must be (steps, a share"),
    ("optimizer.lookahead", (5, 0.0), "config.optimizer.lookahead=(5, 0.0) must be (steps, a share"),
    ("optimizer.lookahead", (5, 1.5), "config.optimizer.lookahead=(5, 1.5) must be (steps, a share"),
    ("optimizer.frozen", "^image/", "config.optimizer.frozen is not a key"),
    ("optimizer.schedule", "cosine", "config.optimizer.schedule='cosine' must hold keys"),
    ("optimizer.groups", "^image/", "config.optimizer.groups='^image/' must be a tuple"),
    ("optimizer.groups", ("^image/",), "config.optimizer.groups[0] must hold keys (match, rate, "),
    ("optimizer.groups", ({"rate": 0.0},), "config.optimizer.groups[0].match is missing"),
    ("optimizer.groups", ({"match": "("},), "config.optimizer.groups[0].match='(' is not a regular expression"),
    ("optimizer.groups", (GROUP, GROUP | {"rte": 1.0}), "config.optimizer.groups[1].rte is not a key"),
    ("optimizer.groups", (GROUP | {"rate": -1.0},), "config.optimizer.groups[0].rate=-1.0 must not be negative"),
    ("optimizer.groups", (GROUP | {"weight_decay": math.nan},), "config.optimizer.groups[0].weight_decay=nan must"),
    ("optimizer.groups", (GROUP | {"layer_decay": 0.0},), "config.optimizer.groups[0].layer_decay=0.0 must be above 0"),
    ("keep_best", 3, "config.keep_best=3 must be text"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_a_mistake_is_one_line_that_names_the_key(key, value, said):
    message = the_error(parse, Config, changed(SMALLEST, key, value))
    assert said in message
    assert message.startswith("config.") and "\n" not in message


WRONG_METHOD = [
    ("name", "clop", "config.method.name='clop' is not a method; there must be a file jaxclip/methods/clop.py"),
    ("name", "../clip", "config.method.name='../clip' is not a method"),
    ("name", 3, "config.method.name=3 is not a method"),
    ("name", ABSENT, "config.method.name=None is not a method"),
    ("embed_dims", 3, "config.method.embed_dims is not a key; did you mean config.method.embed_dim?"),
    ("image", ABSENT, "config.method.image is missing"),
    ("embed_dim", 0, "config.method.embed_dim=0 must be at least 1"),
    ("image.width", 64.0, "config.method.image.width=64.0 must be a whole number"),
    ("image.patch_size", 33, "config.method.image.image_size=32 must be at least patch_size=33"),
    ("image.patch_size", 0, "config.method.image.patch_size=0 must be at least 1"),
    ("image.heads", 0, "config.method.image.heads=0 must be at least 1"),
    ("image.heads", 3, "config.method.image.width=64 must be a multiple of heads=3"),
    ("image.layers", 0, "config.method.image.layers=0 must be at least 1"),
    ("image.patch_drop", 1.0, "config.method.image.patch_drop=1.0 must be at least 0 and below 1"),
    ("image.patch_drop", -0.1, "config.method.image.patch_drop=-0.1 must be at least 0 and below 1"),
    (
        "image.remat",
        "some",
        "config.method.image.remat='some' must be one of 'none', 'products', 'dots', 'full'",
    ),
    ("text.heads", 3, "config.method.text.width=64 must be a multiple of heads=3"),
    ("text.context_length", 0, "config.method.text.context_length=0 must be at least 2"),
    ("text.vocab_size", -1, "config.method.text.vocab_size=-1 must be at least 1"),
]


@pytest.mark.parametrize(
    ("key", "value", "said"), WRONG_METHOD, ids=[f"{key}={value}" for key, value, _ in WRONG_METHOD]
)
def test_a_mistake_in_the_method_is_one_line_that_names_the_key(key, value, said):
    message = the_error(methods.from_config, changed(CLIP, key, value))
    assert said in message
    assert message.startswith("config.method") and "\n" not in message


def test_a_whole_number_serves_where_a_number_is_asked_and_becomes_one():
    config = parse(Config, changed(SMALLEST, "optimizer.learning_rate", 1))
    assert type(config.optimizer.learning_rate) is float


def test_without_evaluations_the_methods_task_is_done_on_the_validation_data():
    config = parse(Config, changed(SMALLEST, "data.eval", "shapes:validation"))
    assert config.evaluations("knn") == {"validation": {"task": "knn", "data": "shapes:validation"}}
    assert not config.evaluations("")
    assert not parse(Config, SMALLEST).evaluations("knn")
    named = parse(Config, changed(SMALLEST, "evals.seen", EVALUATION))
    assert named.evaluations("knn") == {"seen": EVALUATION}


def test_a_parsed_config_cannot_be_changed():
    config = parse(Config, changed(SMALLEST, "evals.seen", EVALUATION))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3
    with pytest.raises(TypeError):
        config.evals["more"] = config.evals["seen"]


@pytest.mark.parametrize("name", RECIPES)
class TestRecipe:
    def recipe(self, name: str) -> ConfigDict:
        config = importlib.import_module(f"configs.{name}").get_config()
        if not config.data.vocabulary and not config.data.train_vocabulary:
            config.data.vocabulary = "bpe_simple_vocab_16e6.txt.gz"
        return config

    def test_survives_json(self, name):
        config = parse(Config, self.recipe(name))
        assert parse(Config, json.loads(json.dumps(to_dict(config)))) == config

    def test_can_be_changed_at_every_key_on_the_command_line(self, name):
        """A flag can only set a key that the recipe has."""
        recipe = self.recipe(name)
        parsed = parse(Config, recipe)
        method = to_dict(methods.from_config(parsed.method))
        whole = to_dict(parsed) | {"method": {"name": parsed.method["name"]} | method}
        assert flatten(whole).keys() == flatten(to_dict(recipe.to_dict())).keys()


def test_the_command_line_recipes_and_json_give_the_same_groups():
    given = changed(SMALLEST, "optimizer.groups", (GROUP, {"match": "^text/", "rate": 0}))
    config = parse(Config, ConfigDict(given))
    assert config.optimizer.groups == (GroupConfig("^image/", 0.5), GroupConfig("^text/", 0.0))
    assert parse(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_defaults_are_those_of_the_dataclasses():
    found = defaults(Config)
    assert found["mesh"] == {"data": -1, "fsdp": 1}
    assert (found["log_every"], found["eval_every"], found["optimizer"]["beta2"]) == (50, 2000, 0.98)
    assert not found.keys() & {"seed", "steps", "batch_size", "method"} and "train" not in found["data"]
    required = {"seed": 0, "steps": 10, "batch_size": 8, "method": {"name": "clip"}}
    found["data"] |= {"train": "shapes", "train_vocabulary": 300}
    found["optimizer"]["learning_rate"] = 1e-3
    assert parse(Config, found | required) == parse(Config, SMALLEST)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_works_from_any_folder(name, tmp_path, monkeypatch):
    """No recipe needs another file: a copy of it is the same recipe."""
    copy = tmp_path / "mine.py"
    shutil.copy(CONFIGS / f"{name}.py", copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    expected = importlib.util.spec_from_file_location("mine", copy)
    module = importlib.util.module_from_spec(expected)
    expected.loader.exec_module(module)
    assert "configs" not in sys.modules
    config = module.get_config()
    config.data.vocabulary, config.data.train_vocabulary = "bpe_simple_vocab_16e6.txt.gz", 0
    parse(Config, config)


def test_flatten_gives_leaves_their_dotted_names():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "empty": {}}
    assert flatten(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None, "empty": {}}


def test_to_dict_gives_what_json_can_hold():
    config = parse(Config, changed(SMALLEST, "evals.seen", EVALUATION | {"templates": ("a {c}",)}))
    plain = to_dict(config)
    assert plain["evals"] == {"seen": EVALUATION | {"templates": ["a {c}"]}}
    assert plain["data"]["crop_scale"] == [0.9, 1.0]
    assert json.loads(json.dumps(plain)) == plain


def test_a_list_of_sources_has_weights():
    written = parse(DataConfig, {"train": [["a.tar", 0.7], ("b/*.csv", 3)], "train_vocabulary": 600})
    assert written.train == (("a.tar", 0.7), ("b/*.csv", 3.0))
    with pytest.raises(UserError, match=r"config.train\[0\]\[1\]='x' must be a number"):
        parse(DataConfig, {"train": [["a.tar", "x"]], "train_vocabulary": 600})
    with pytest.raises(UserError, match=r"config.train=3 must be text or a tuple"):
        parse(DataConfig, {"train": 3, "train_vocabulary": 600})
