"""Embeddings compared with those of open_clip and transformers for equal weights, images and tokens.

The reference embeddings are in golden/, computed by golden/make.py; the libraries are not needed here.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import made
import numpy as np
import pytest
from paths import GOLDEN

from jaxclip import methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.context import Context
from jaxclip.weights.formats.safetensors_writer import write_tensors
from jaxclip.weights.load import Weights, open_weights
from jaxclip.weights.overrides import Answers

MODELS: dict[str, Any] = json.loads((GOLDEN / "models.json").read_text())


def write(folder: pathlib.Path, name: str) -> None:
    """The folder that the peer would have written."""
    model = MODELS[name]
    is_open_clip = "model_cfg" in model["config"]
    tensors = (
        (
            tensor,
            tuple(shape),
            np.dtype("int64" if "num_batches" in tensor else "float32"),
            values(tensor, tuple(shape)),
        )
        for tensor, shape in model["tensors"].items()
    )
    write_tensors(folder, "open_clip_model" if is_open_clip else "model", tensors)
    (folder / ("open_clip_config.json" if is_open_clip else "config.json")).write_text(json.dumps(model["config"]))


def values(tensor: str, shape: tuple[int, ...]) -> Any:
    return lambda: made.values(tensor, shape)


def embeddings(weights: Weights, count: int) -> dict[str, np.ndarray]:
    """What our towers give for the images and the tokens that the peer was given."""
    import jax

    method = weights.method
    variables = methods.joined(*weights.read(sharding.create(MeshConfig(), jax.devices()[:1])))
    model = methods.bind(method)
    images = jnp.asarray(made.images(16, method.image.image_size)[:count])
    rows = made.tokens(16, method.text.context_length, method.text.vocab_size)[:count]
    tokens, ends = jnp.asarray(rows.astype(np.int32)), jnp.asarray(made.ends(rows))

    @jax.jit
    def encode(variables, images, tokens, ends):
        built = model(variables)
        ctx = Context()
        return {"image": built.encode_image(images, ctx), "text": built.encode_text(tokens, ends, ctx)}

    return {tower: np.asarray(value) for tower, value in encode(variables, images, tokens, ends).items()}


# Of each kind of tower one; the others differ by sizes.
REPEATED = {"RN50x4", "ViT-B-32", "ViT-L-14-shallow", "ViT-g-14-shallow", "SigLIP-B-16", "SigLIP2-B-16"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in REPEATED)) for name in MODELS])
def test_embeddings_equal_the_peers(name, tmp_path):
    golden = np.load(GOLDEN / "embeddings.npz")
    expected = {tower: golden[f"{name}/{tower}"] for tower in ("image", "text")}
    write(tmp_path, name)
    preprocess = "siglip" if "siglip" in name.lower() else "clip"
    weights = open_weights(tmp_path, Answers(preprocess=preprocess), answers_binding=False, tokenizer_needed=False)
    found = embeddings(weights, len(expected["image"]))
    for tower, value in expected.items():
        assert np.abs(found[tower] - value).max() <= 1e-5 * np.abs(value).max(), tower
        # Embeddings of different inputs differ by far more than that.
        assert np.abs(value[0] - value[1]).max() > 0.05 * np.abs(value).max(), tower
    if len(found["image"]) == 16:
        logits = [e["image"] @ e["text"].T / 0.07 for e in (found, expected)]
        assert np.abs(logits[0] - logits[1]).max() <= 1e-4
