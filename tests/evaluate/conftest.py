"""A model for the command line of evaluations."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from look_up import mesh_of

from jaxclip import methods, model, recipes
from jaxclip.data import tokenizers
from jaxclip.encoder import Encoder


@pytest.fixture(scope="session")
def untrained() -> model.Model:
    """A tiny CLIP."""
    sizes = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "text_width": 64, "text_layers": 1}
    tokenizer = tokenizers.train(["red to the left of green"], 520)
    method = methods.from_config(recipes.clip(**sizes, embed_dim=8).to_dict() | {"name": "clip"})
    method = dataclasses.replace(method, text=dataclasses.replace(method.text, vocab_size=520))
    params, stats = methods.init_variables(method, jax.random.key(0))
    return model.Model(None, params, stats, Encoder(method, mesh_of(1), "float32", tokenizer, 16))


@pytest.fixture
def weights(untrained, tmp_path, monkeypatch) -> str:
    """The path of such a model."""
    monkeypatch.setattr(model, "load", lambda *_, **__: untrained)
    (tmp_path / "weights").mkdir()
    return str(tmp_path / "weights")
