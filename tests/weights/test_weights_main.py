"""python -m jaxclip.weights: conversion of a run to other formats and back, and the errors of the command."""

from __future__ import annotations

import json
import pathlib
import shutil

import commands
import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import checkpoint, methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.data import tokenizers
from jaxclip.weights import tensor_map
from jaxclip.weights.__main__ import main
from jaxclip.weights.load import open_weights

RESNET = {
    "name": "clip",
    "embed_dim": 16,
    "image": {"name": "modified_resnet", "image_size": 64, "width": 64, "layers": (1, 1, 1, 1)},
    "text": {"vocab_size": 520, "context_length": 12, "width": 64, "layers": 1, "heads": 1},
    "image_projection_bias": True,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run whose image tower has one head of width 64, which is the default in open_clip's config."""
    folder = tmp_path_factory.mktemp("run")
    wide = "\n".join(
        f"config.method.{tower}.{key}" for tower in ("image", "text") for key in ("width = 64", "heads = 1")
    )
    ran = commands.run([f"--config={commands.recipe(folder, wide)}", f"--workdir={folder}/run"], commands.environment())
    assert ran.status == 0, ran.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Weights of random numbers, with batch statistics."""
    method, rng = methods.from_config(RESNET), np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype),
        methods.abstract_variables(method),
    )
    tokenizer = tokenizers.train(["red to the left of blue"] * 9, 520).to_json()
    values = {"method": methods.to_config(method), "tokenizer": tokenizer}
    folder = tmp_path_factory.mktemp("resnet") / "weights"
    checkpoint.save_variables(folder, params, stats, values)
    return folder


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    weights = open_weights(path)
    variables = methods.joined(*weights.read(sharding.create(MeshConfig(), jax.devices()[:1])))
    return {name: np.asarray(array) for name, array in tensor_map.flat(variables).items()}


def same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype and array.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("form", ["jaxclip", "openclip", "huggingface"])
def test_a_run_is_bit_equal_after_a_round_trip_through_every_format(workdir, tmp_path, form, capsys):
    assert main([str(workdir), str(tmp_path / "out"), f"--to={form}"]) == 0
    count = sum(array.size for array in arrays(workdir).values())
    assert capsys.readouterr().out == f"{tmp_path}/out: {count:,} parameters for {form}\n"
    assert main([str(tmp_path / "out"), str(tmp_path / "back"), "--to=jaxclip"]) == 0
    same_bits(workdir, tmp_path / "back")
    ours, back = jaxclip.load(workdir), jaxclip.load(tmp_path / "back")
    texts = ["red to the left of blue", "Gold, TEAL and navy!", "  two  spaces "]
    ends = np.arange(12) <= (back.tokenize(texts) == 519).argmax(axis=1)[:, None]
    np.testing.assert_array_equal(back.tokenize(texts) * ends, ours.tokenize(texts) * ends)
    np.testing.assert_array_equal(back.encode_text(texts), ours.encode_text(texts))
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    np.testing.assert_array_equal(back.encode_image(image), ours.encode_image(image))


@pytest.mark.parametrize("form", ["jaxclip", "openclip"])
def test_running_averages_go_along(resnet, tmp_path, form):
    assert main([str(resnet), str(tmp_path / "out"), f"--to={form}"]) == 0
    same_bits(resnet, tmp_path / "out")
    assert np.ptp(arrays(resnet)["image/bn1/mean"]) > 0


def test_another_size_is_written_with_resized_positions(workdir, tmp_path):
    arguments = ["--to=huggingface", "--image-size=32", "--context-length=20"]
    assert main([str(workdir), str(tmp_path / "out"), *arguments]) == 0
    model = jaxclip.load(tmp_path / "out")
    assert (model.method.image.image_size, model.method.text.context_length) == (32, 20)
    expected = jaxclip.load(workdir, image_size=32, context_length=20)
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    np.testing.assert_array_equal(model.encode_image(image), expected.encode_image(image))


def test_bfloat16_is_written_as_such(workdir, tmp_path):
    assert main([str(workdir), str(tmp_path / "out"), "--to=huggingface", "--dtype=bfloat16"]) == 0
    from jaxclip.weights.formats.safetensors import open_tensors

    tensors = open_tensors(tmp_path / "out" / "model.safetensors")
    assert {str(t.dtype) for t in tensors.values() if t.shape} == {"bfloat16"}


@pytest.fixture(scope="module")
def bare(workdir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A published open_clip file without a folder, and so without activation, preprocessing or vocabulary."""
    folder = tmp_path_factory.mktemp("bare")
    assert main([str(workdir), str(folder / "out"), "--to=openclip"]) == 0
    return folder / "out" / "open_clip_model.safetensors"


def test_missing_settings_are_asked_for_in_one_line_with_the_choices(bare, tmp_path, capsys):
    assert main([str(bare), str(tmp_path / "out"), "--to=jaxclip"]) == 2
    (line,) = commands.without_phases(capsys.readouterr().err).splitlines()
    for word in (
        "activation=",
        "'quick_gelu'",
        "'gelu'",
        "'gelu_tanh'",
        "preprocess=",
        "'clip'",
        "'siglip'",
        "tokenizer=",
    ):
        assert word in line
    assert not (tmp_path / "out").exists()


def test_answers_open_what_does_not_say_everything(bare, workdir, tmp_path):
    tokenizer = workdir / "tokenizer.json"
    answers = ["--activation=quick_gelu", "--preprocess=clip", "--heads=1,1", f"--tokenizer={tokenizer}"]
    assert main([str(bare), str(tmp_path / "out"), "--to=jaxclip", *answers]) == 0
    same_bits(workdir, tmp_path / "out")
    ours = jaxclip.load(workdir).encode_text(["red"])
    np.testing.assert_array_equal(jaxclip.load(tmp_path / "out").encode_text(["red"]), ours)
    other = jaxclip.load(bare, activation="gelu", preprocess="clip", heads="1,1", tokenizer=tokenizer)
    assert np.abs(other.encode_text(["red"]) - ours).max() > 1e-5


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--activation=relu", "activation='relu' must be"),
        ("--preprocess=openai", "preprocess='openai' must be"),
        ("--heads=0", "heads=0 must be at least 1"),
        ("--tokenizer=nowhere.txt", "nowhere.txt does not exist"),
    ],
)
def test_a_wrong_answer_is_one_line(bare, tmp_path, capsys, flag, said):
    assert main([str(bare), str(tmp_path / "out"), "--to=jaxclip", flag]) == 2
    (line,) = commands.without_phases(capsys.readouterr().err).splitlines()
    assert line.startswith("error: ") and said in line


def test_a_setting_that_is_in_the_files_is_refused_and_not_ignored(workdir, bare, tmp_path, capsys):
    for source, said in ((bare.parent, "says its activation itself"), (workdir, "leave activation out")):
        assert main([str(source), str(tmp_path / "out"), "--to=jaxclip", "--activation=gelu"]) == 2
        assert said in capsys.readouterr().err


def test_a_folder_may_be_named_from_inside_it_or_far_below(workdir, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(workdir), ".", "--to=jaxclip"]) == 0
    same_bits(workdir, tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    assert main([str(workdir), "a/b/c", "--to=jaxclip"]) == 0
    same_bits(workdir, tmp_path / "a" / "b" / "c")


def refused(capsys, source: pathlib.Path, folder: pathlib.Path, form: str = "jaxclip") -> str:
    assert main([str(source), str(folder), f"--to={form}"]) == 2
    (line,) = commands.without_phases(capsys.readouterr().err).splitlines()
    return line


def test_a_format_that_does_not_support_the_model_gives_the_reason(resnet, tmp_path, capsys):
    assert "image.name='modified_resnet'" in refused(capsys, resnet, tmp_path / "out", "huggingface")
    assert "modified_resnet" in refused(capsys, resnet, tmp_path / "a" / "b" / "out", "huggingface")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(workdir, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("")
    assert "already exists" in refused(capsys, workdir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_paths_and_other_files_are_named(tmp_path, capsys):
    assert "does not exist" in refused(capsys, tmp_path / "none", tmp_path / "out")
    assert "path=gs://b/m must be on a local disk" in refused(capsys, "gs://b/m", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "has neither" in refused(capsys, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "page.safetensors").write_text("<html>")
    assert "page.safetensors" in refused(capsys, tmp_path / "page.safetensors", tmp_path / "out")
    (tmp_path / "model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "torch_to_safetensors" in refused(capsys, tmp_path / "model.bin", tmp_path / "out")


@pytest.fixture
def exported(workdir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    assert main([str(workdir), str(tmp_path / "hf"), "--to=huggingface"]) == 0
    return tmp_path / "hf"


def change(path: pathlib.Path, *keys: str, value: object) -> None:
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_tensors_that_do_not_fit_the_config_are_named_in_one_error(exported, tmp_path, capsys):
    change(exported / "config.json", "vision_config", "num_hidden_layers", value=2)
    change(exported / "config.json", "text_config", "intermediate_size", value=100)
    capsys.readouterr()
    line = refused(capsys, exported, tmp_path / "out")
    assert "missing (vision_model.encoder.layers.1." in line and "of another shape (text_model.encoder.layers.0" in line


def test_a_folder_without_its_weights_or_tokenizer_says_so(exported, tmp_path, capsys):
    capsys.readouterr()
    for name in ("tokenizer.json", "vocab.json"):
        (exported / name).unlink()
    assert "give tokenizer=PATH" in refused(capsys, exported, tmp_path / "out")
    (exported / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(capsys, exported, tmp_path / "out")
    (exported / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "torch_to_safetensors" in refused(capsys, exported, tmp_path / "out")


@pytest.mark.parametrize("layers", [10**9, 10**5, -1, "many"])
def test_a_config_of_impossible_size_is_refused_at_once(exported, tmp_path, capsys, layers):
    change(exported / "config.json", "text_config", "num_hidden_layers", value=layers)
    capsys.readouterr()
    assert "layers" in refused(capsys, exported, tmp_path / "out")


def test_a_vocabulary_larger_than_the_text_tower_is_refused(exported, tmp_path, capsys):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    larger = tmp_path / "larger.json"
    larger.write_text(tokenizers.train(["a red thing and a blue thing"] * 9, 530).to_json())
    capsys.readouterr()
    assert main([str(exported), str(tmp_path / "out"), "--to=jaxclip", f"--tokenizer={larger}"]) == 2
    assert "the text tower only 520" in capsys.readouterr().err
