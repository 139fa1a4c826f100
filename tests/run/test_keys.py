"""--help: the flags, and every key of a recipe with its value and its sentence."""

from __future__ import annotations

import dataclasses

import pytest
from commands import environment, recipe, run

from jaxclip import keys
from jaxclip.config import AugmentConfig, Config, DataConfig, GroupConfig, OptimizerConfig, PixelsConfig, ViewConfig


@pytest.mark.parametrize(
    "kind", [Config, DataConfig, OptimizerConfig, AugmentConfig, ViewConfig, GroupConfig, PixelsConfig]
)
def test_every_key_has_a_sentence(kind):
    lines = "\n".join(keys.listing(kind, None, "x")).splitlines()
    for field in dataclasses.fields(kind):
        at = [number for number, line in enumerate(lines) if line.startswith(f"--x.{field.name}=")]
        assert not at or lines[at[0] + 1].startswith("        "), field.name
        assert at or any(line.startswith(f"--x.{field.name}.") for line in lines), field.name


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_recipe_has_its_own_values(tmp_path, flag):
    result = run([f"--config={recipe(tmp_path)}", "--config.steps=9", flag], environment())
    assert result.status == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    for expected in ("--config.steps=9", "--config.batch_size=8", "--config.method.image.width=32"):
        assert expected in lines
    assert any(line.startswith("--workdir: ") for line in lines)


def test_help_without_a_recipe_has_the_keys_of_all():
    result = run(["--help"], environment())
    assert result.status == 0 and "--config.checkpoint_every=1000" in result.stdout.splitlines()
