"""config.init_from: bit-exact copies of selected arrays, fresh values for the others, and errors for differences."""

from __future__ import annotations

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from commands import environment, recipe, run
from PIL import Image
from starting import arrays, assert_equal, changed, mesh, source, started

from jaxclip import checkpoint, methods, optimizer, sharding
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.data.tokenizers.clip import END, START, SYMBOLS, ClipTokenizer
from jaxclip.errors import UserError
from jaxclip.step import Step

FORMS = ("jaxclip", "openclip", "huggingface", "bare")


# ------------------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize("form", FORMS)
def test_all_parameters_are_copied_bit_for_bit(form, tmp_path):
    path, theirs = source(tmp_path, form)
    found, _, taken = started(path)
    assert_equal(found, theirs)
    assert taken == sum(values.size for values in theirs.values())


@pytest.mark.parametrize("init_only", ["^image/", "^text/.*kernel$", "^logit_scale$"])
def test_parameters_that_do_not_match_stay_fresh(init_only, tmp_path):
    path, theirs = source(tmp_path, "openclip")
    found, fresh, taken = started(path, init_only=init_only)
    chosen = {name for name in theirs if re.search(init_only, name)}
    assert 0 < len(chosen) < len(theirs)
    assert_equal(found, {name: (theirs if name in chosen else fresh)[name] for name in fresh})
    assert taken == sum(theirs[name].size for name in chosen)


def test_batch_statistics_are_copied_too(tmp_path):
    resnet = {"name": "modified_resnet", "image_size": 32, "width": 2, "layers": (1, 1, 1, 1)}
    keys = changed(image=resnet, image_projection_bias=True)
    path, theirs = source(tmp_path, "openclip", keys)
    found, fresh, _ = started(path, keys, init_only="^image/")
    assert_equal(found, {name: (theirs if name.startswith("image/") else fresh)[name] for name in fresh})
    assert "image/bn1/mean" in theirs


@pytest.mark.parametrize("form", ["jaxclip", "huggingface"])
def test_positions_are_resized_to_other_images_and_contexts(form, tmp_path):
    path, theirs = source(tmp_path, form)
    found, _, _ = started(path, changed(image__image_size=48, text__context_length=4))
    assert_equal(found, theirs | {name: found[name] for name in ("image/positions", "text/positions")})
    # Half as many text positions: each is between two old ones.
    np.testing.assert_allclose(found["text/positions"], theirs["text/positions"].reshape(4, 2, 64).mean(1), atol=1e-6)
    positions = found["image/positions"]
    np.testing.assert_array_equal(positions[0], theirs["image/positions"][0])
    grid = theirs["image/positions"][1:].reshape(4, 4, 32)
    # Pillow's bicubic kernel is antialiased as well.
    expected = [np.asarray(Image.fromarray(grid[..., i]).resize((6, 6), Image.Resampling.BICUBIC)) for i in range(32)]
    np.testing.assert_allclose(positions[1:], np.stack(expected, -1).reshape(36, 32), atol=1e-5)


def test_other_ways_to_run_the_same_tower_do_not_matter(tmp_path):
    path, theirs = source(tmp_path, "jaxclip")
    found, _, _ = started(path, changed(image__scan=False, image__patch_drop=0.5, text__remat="full"))
    assert_equal(found, theirs)


def test_siglip_may_start_from_clip_but_for_its_bias(tmp_path):
    path, theirs = source(tmp_path, "openclip")
    found, fresh, _ = started(path, changed(name="siglip"), init_only="^(?!logit)")
    assert_equal(found, theirs | {name: fresh[name] for name in ("logit_scale", "logit_bias")})


# ------------------------------------------------------------------------------------------------ refusals

MISTAKES = {
    "another width": (
        {"image__width": 64},
        "",
        "image.width=32 where the recipe has 64; set config.method.image.width=",
    ),
    "two differences": (
        {"text__layers": 3, "text__heads": 2},
        "",
        "has text.layers=2 where the recipe has 3, text.heads=1 where the recipe has 2; set",
    ),
    "another embedding": (
        {"embed_dim": 8},
        "",
        "image_projection/kernel is (32, 16), not (32, 8); text_projection/kernel is (64,",
    ),
    "another vocabulary's size": ({"text__vocab_size": 600}, "", "text/token_embedding is (514, 64), not (600, 64)"),
    "a bias that is not there": ({"name": "siglip"}, "", "logit_bias is not there"),
    "another activation": ({"text__activation": "gelu"}, "", "set config.method.text.activation='quick_gelu'"),
    "another eps": ({"image__eps": 1e-6}, "^image/", "set config.method.image.eps=1e-05"),
    "another mask": ({"text__causal": False}, "^text/", "set config.method.text.causal=True"),
    "another preprocessing": ({"pixels__resize": "squash"}, "", "set config.method.pixels.resize='crop'"),
    "another tower": (
        {"image": {"name": "resnet", "image_size": 64, "width": 2}},
        "^image/",
        "has image.name='vit' where the recipe has 'resnet'",
    ),
    "nothing of the name": ({}, "^vision/", "config.init_only='^vision/' is found in no parameter's path"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_the_source_does_not_have_or_means_otherwise_is_named_in_one_line(case, tmp_path):
    keys, init_only, says = MISTAKES[case]
    path, _ = source(tmp_path, "openclip")
    with pytest.raises(UserError, match=re.escape(says)) as error:
        started(path, changed(**keys), init_only)
    assert "\n" not in str(error.value) and "config.init_" in str(error.value)


def test_another_vocabulary_is_refused_where_its_embedding_is_taken(tmp_path):
    path, _ = source(tmp_path, "jaxclip")
    swapped = [*SYMBOLS[:64], *SYMBOLS[65:], SYMBOLS[64], START, END]
    other = ClipTokenizer({token: i for i, token in enumerate(swapped)}, [])
    with pytest.raises(UserError, match="another vocabulary than the run; set config.data.vocabulary"):
        started(path, tokenizer=other)
    started(path, init_only="^image/", tokenizer=other)


def test_padding_that_the_run_does_not_have_is_refused_where_the_text_tower_is_taken(tmp_path):
    keys = changed(text__causal=False)
    path, theirs = source(tmp_path, "openclip", keys)
    settings = pathlib.Path(path) / "tokenizer_config.json"
    settings.write_text(json.dumps({"pad_token": END}))
    (settings.parent / "special_tokens_map.json").unlink()
    with pytest.raises(UserError, match="padded with id 513, which its text tower sees, and the run pads with 0;"):
        started(path, keys)
    found, fresh, _ = started(path, keys, "^image")
    assert_equal(found, fresh | {name: values for name, values in theirs.items() if name.startswith("image")})


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/none does not exist; accepted are")):
        started(f"{tmp_path}/none")


def test_an_invalid_expression_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.init_only='\^image\(' is not a regular expression"):
        started(str(tmp_path), init_only="^image(")


# ---------------------------------------------------------------------------------------------- a whole run


@pytest.mark.slow
def test_a_run_starts_from_another_runs_workdir(tmp_path):
    """At a learning rate of zero, so that what it saves after a step is what it started with."""
    config = f"--config={recipe(tmp_path)}"
    start = [f"--config.init_from={tmp_path}/first", "--config.init_only=^image"]
    runs = {
        "first": [config, "--config.seed=1"],
        "second": [config, "--config.optimizer.learning_rate=0.0", "--config.steps=1", *start],
    }
    found = {}
    for name, arguments in runs.items():
        result = run([*arguments, f"--workdir={tmp_path}/{name}"], environment())
        assert result.status == 0, result.stderr
        folder = checkpoint.find(tmp_path / name)
        method = methods.from_config(checkpoint.load_model(folder)["config"]["method"])
        abstract = sharding.placed(mesh(), *methods.abstract_variables(method))
        found[name] = arrays(checkpoint.load_variables(folder, *abstract)[0])
    assert re.search(rf"[\d,]+ of them from {re.escape(str(tmp_path / 'first'))}", result.stderr)
    adamw = optimizer.create(OptimizerConfig(learning_rate=0.0), 1)
    fresh = arrays(Step(method, adamw, sharding.create(MeshConfig(), jax.devices()[:1])).init(0).params)
    expected = {path: (found["first"] if path.startswith("image") else fresh)[path] for path in fresh}
    assert_equal(found["second"], expected)
    assert not np.array_equal(found["first"]["image_projection/kernel"], fresh["image_projection/kernel"])
