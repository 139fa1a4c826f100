"""Image towers alone: what the command writes for torchvision, timm and `config.init_from`, and its errors."""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import commands
import numpy as np
import pytest
from starting import IMAGE, arrays, assert_equal, changed, source, started, variables
from test_init_from_one_tower import RESNET, resnet_file
from weight_layouts import assert_covered_once, shapes_of

import jaxclip
from jaxclip import methods
from jaxclip.errors import UserError
from jaxclip.towers.vit import ViTConfig
from jaxclip.weights.__main__ import main
from jaxclip.weights.export import save
from jaxclip.weights.families import timm
from jaxclip.weights.formats.safetensors import open_tensors
from jaxclip.weights.load import open_weights

MODIFIED = changed(
    image={"name": "modified_resnet", "image_size": 64, "layers": (1, 1, 1, 1), "width": 8}, image_projection_bias=True
)
MAP = changed(image=IMAGE | {"pool": "map", "ln_pre": False, "patch_bias": True})
# Where `config.init_from` finds what each form writes.
FILES = {"jaxclip": "", "torchvision": "model.safetensors", "timm": "model.safetensors"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[dict], tuple[str, dict[str, np.ndarray]]]:
    """Saves a model of random numbers, once for each config; its path, and the arrays of its image tower by path."""

    @functools.cache
    def of(keys: str) -> tuple[str, dict[str, np.ndarray]]:
        path, arrays = source(tmp_path_factory.mktemp("saved"), "jaxclip", json.loads(keys))
        return path, {name: values for name, values in arrays.items() if name.startswith("image/")}

    return lambda keys: of(json.dumps(keys))


@pytest.fixture(scope="module")
def resnet(saved, tmp_path_factory) -> pathlib.Path:
    """The image tower of a ResNet's model in jaxclip's form."""
    folder = tmp_path_factory.mktemp("resnet") / "out"
    assert main([saved(RESNET)[0], str(folder), "--part=image", "--to=jaxclip"]) == 0
    return folder


@pytest.mark.parametrize("form", FILES)
def test_a_resnet_comes_back_bit_for_bit_from_every_form(saved, tmp_path, form, capsys):
    path, ours = saved(RESNET)
    folder = tmp_path / "out"
    assert main([path, str(folder), "--part=image", f"--to={form}"]) == 0
    parameters = sum(values.size for name, values in ours.items() if name.rpartition("/")[2] not in ("mean", "var"))
    assert f"{folder}: {parameters:,} parameters for {form}\nimages have mean=(0.48" in capsys.readouterr().out
    found, fresh, taken = started(str(folder / FILES[form]), RESNET, init_only="^image/")
    assert_equal(found, fresh | ours)
    assert taken == sum(values.size for values in ours.values()) > parameters


@pytest.mark.parametrize("keys", [MODIFIED, MAP, changed()], ids=["modified_resnet", "map", "class"])
def test_every_image_tower_comes_back_bit_for_bit_from_jaxclips_form(saved, tmp_path, keys):
    path, ours = saved(keys)
    assert main([path, str(tmp_path / "out"), "--part=image", "--to=jaxclip"]) == 0
    found, fresh, _ = started(str(tmp_path / "out"), keys, init_only="^image/")
    assert_equal(found, fresh | ours)


@pytest.mark.parametrize("form", ["torchvision", "timm"])
def test_a_resnet_has_torchs_tensors_but_the_classifiers(saved, tmp_path, form):
    expected = open_tensors(pathlib.Path(resnet_file(tmp_path)[0]))
    assert main([saved(RESNET)[0], str(tmp_path / "out"), "--part=image", f"--to={form}"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    found = open_tensors(tmp_path / "out" / "model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in expected.items() if not name.startswith("fc.")
    }


@pytest.mark.parametrize(
    "keys", [{}, {"ln_pre": False, "patch_bias": True}, {"ln_pre": False, "patch_bias": True, "pool": "map"}]
)
def test_every_number_of_a_vision_transformer_is_in_one_of_timms_tensors(keys):
    config = ViTConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2, **keys)
    shapes = shapes_of(methods.from_config(changed(image=IMAGE | {"layers": 2} | keys)))
    image = {path: shape for path, shape in shapes.items() if path.startswith("image/")}
    assert_covered_once(timm.pieces(config), image)


def test_a_tower_in_jaxclips_form_is_a_source_beside_others(saved, resnet, tmp_path):
    whole, _ = saved(RESNET)
    for joined, said in (
        (f"{resnet} + {whole}", f"{whole} is no single tower"),
        (f"{resnet} + {resnet}", "out is the image tower, which is not taken or given twice"),
    ):
        with pytest.raises(UserError, match=said):
            started(joined, RESNET)


def test_a_tower_in_jaxclips_form_has_its_preprocessing_and_its_sizes(resnet):
    for keys, said in (
        (RESNET | {"pixels": {"mean": (0.5, 0.5, 0.5)}}, "has pixels.mean=.*0.48.* where the recipe has"),
        (RESNET | {"image": RESNET["image"] | {"width": 4}}, "image.width=2 where the recipe has 4"),
        (changed(), "has image.name='resnet' where the recipe has 'vit'"),
    ):
        with pytest.raises(UserError, match=f"config.init_from={resnet} .*{said}") as caught:
            started(str(resnet), keys, init_only="^image/")
        assert "\n" not in str(caught.value)


def test_a_tower_alone_is_no_model_to_load(resnet):
    with pytest.raises(UserError) as caught:
        jaxclip.load(resnet)
    assert str(caught.value) == (
        f"{resnet} is an image tower alone: config.init_from={resnet} with config.init_only='^image/' trains from it"
    )


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    (line,) = commands.without_phases(capsys.readouterr().err).splitlines()
    return line


@pytest.mark.parametrize(
    ("keys", "flags", "said"),
    [
        (RESNET, ["--to=openclip", "--part=image"], "--to=openclip writes whole models: leave --part out, or"),
        (RESNET, ["--to=huggingface", "--part=image"], "--to=huggingface writes whole models"),
        (RESNET, ["--to=torchvision"], "--to=torchvision writes an image tower alone: add --part=image"),
        (RESNET, ["--to=timm"], "--to=timm writes an image tower alone: add --part=image"),
        (RESNET, ["--to=timm", "--part=image", "--context-length=9"], "--context-length=9: --part=image has no"),
        (changed(), ["--to=torchvision", "--part=image"], "image towers named 'resnet', and this one is 'vit'"),
        (MODIFIED, ["--to=timm", "--part=image"], "named 'resnet' and 'vit', and this one is 'modified_resnet'"),
        (changed(image__ln_pre=False), ["--to=timm", "--part=image"], "of pool='class', ln_pre=False, patch_bias=Fal"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_status_2(saved, tmp_path, capsys, keys, flags, said):
    line = refused(capsys, saved(keys)[0], str(tmp_path / "out"), *flags)
    assert line.startswith("error: ") and said in line
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(saved, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    line = refused(capsys, saved(RESNET)[0], str(tmp_path / "out"), "--part=image", "--to=timm")
    assert "already exists" in line and [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


# A method without texts.
TOWER_ONLY = """
import dataclasses

from flax import nnx

from jaxclip import methods
from jaxclip.config import PixelsConfig
from jaxclip.towers.resnet import ResNetConfig


class TowerOnly(nnx.Module):
    def __init__(self, method, rngs):
        self.image = method.image.init(rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    image: ResNetConfig
    pixels: PixelsConfig = PixelsConfig()

    def init(self, rngs):
        return TowerOnly(self, rngs)
"""
TOWER = {"name": "tower_only", "image": RESNET["image"]}


@pytest.fixture
def tower_only(tmp_path, monkeypatch) -> Iterator[methods.Method]:
    """The method of tower_only.py, found as if it lay in jaxclip/methods/."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "tower_only.py").write_text(TOWER_ONLY)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    yield methods.from_config(TOWER)
    del sys.modules["jaxclip.methods.tower_only"]


def test_a_method_without_texts_is_written_whole_and_in_part(tmp_path, tower_only, capsys):
    params, stats = variables(TOWER, 1)
    save(tmp_path / "source", "jaxclip", tower_only, None, params, stats)
    assert main([str(tmp_path / "source"), str(tmp_path / "whole"), "--to=jaxclip"]) == 0
    assert open_weights(tmp_path / "whole").tokenizer is None
    # As a whole, and then as a part of that.
    assert main([str(tmp_path / "whole"), str(tmp_path / "part"), "--part=image", "--to=torchvision"]) == 0
    found, fresh, _ = started(str(tmp_path / "part" / "model.safetensors"), RESNET, init_only="^image/")
    assert_equal(found, fresh | arrays(params) | arrays(stats))
    for flags, said in (
        (["--to=openclip"], "error: openclip has no models of this method; write the form jaxclip"),
        (["--to=jaxclip", "--context-length=9"], "error: context_length=9: the model has no text tower"),
    ):
        assert refused(capsys, str(tmp_path / "source"), str(tmp_path / "x"), *flags) == said
