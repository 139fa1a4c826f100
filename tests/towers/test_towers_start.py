"""The published initialization of CLIP's towers."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from jaxclip import methods

WIDTH, DEPTH, PATCH = 256, 4, 16
ONES, ZEROS = ("constant", 1.0), ("constant", 0.0)


def block_init(qkv, attention_out, mlp_in, mlp_out) -> dict[str, tuple[str, float]]:
    return {
        "transformer/blocks/ln_1/scale": ONES,
        "transformer/blocks/ln_1/bias": ZEROS,
        "transformer/blocks/ln_2/scale": ONES,
        "transformer/blocks/ln_2/bias": ZEROS,
        "transformer/blocks/qkv_kernel": qkv,
        "transformer/blocks/qkv_bias": ZEROS,
        "transformer/blocks/attention_out_kernel": attention_out,
        "transformer/blocks/attention_out_bias": ZEROS,
        "transformer/blocks/mlp_in_kernel": mlp_in,
        # torch.nn.Linear's own: uniform within 1 / sqrt(fan in).
        "transformer/blocks/mlp_in_bias": ("uniform", WIDTH**-0.5),
        "transformer/blocks/mlp_out_kernel": mlp_out,
        "transformer/blocks/mlp_out_bias": ("uniform", (4 * WIDTH) ** -0.5),
    }


# OpenAI's clip/model.py: VisionTransformer, with what torch.nn.Linear, Conv2d and MultiheadAttention begin with; and
# CLIP.initialize_parameters.
IMAGE_INIT = {
    "patch_kernel": ("uniform", (3 * PATCH**2) ** -0.5),
    "class_embedding": ("normal", WIDTH**-0.5),
    "positions": ("normal", WIDTH**-0.5),
    "ln_pre/scale": ONES,
    "ln_pre/bias": ZEROS,
    "ln_post/scale": ONES,
    "ln_post/bias": ZEROS,
} | block_init(
    qkv=("uniform", math.sqrt(6 / (WIDTH + 3 * WIDTH))),
    attention_out=("uniform", WIDTH**-0.5),
    mlp_in=("uniform", WIDTH**-0.5),
    mlp_out=("uniform", (4 * WIDTH) ** -0.5),
)
TEXT_INIT = {
    "token_embedding": ("normal", 0.02),
    "positions": ("normal", 0.01),
    "ln_final/scale": ONES,
    "ln_final/bias": ZEROS,
} | block_init(
    qkv=("normal", WIDTH**-0.5),
    attention_out=("normal", WIDTH**-0.5 * (2 * DEPTH) ** -0.5),
    mlp_in=("normal", (2 * WIDTH) ** -0.5),
    mlp_out=("normal", WIDTH**-0.5 * (2 * DEPTH) ** -0.5),
)
INIT = (
    {f"image/{path}": expected for path, expected in IMAGE_INIT.items()}
    | {f"text/{path}": expected for path, expected in TEXT_INIT.items()}
    | {f"{tower}_projection/kernel": ("normal", WIDTH**-0.5) for tower in ("image", "text")}
    | {"logit_scale": ("constant", math.log(1 / 0.07))}
)


@functools.cache
def fresh_parameters() -> dict[str, np.ndarray]:
    sizes = {"width": WIDTH, "layers": DEPTH, "heads": 4}
    method = methods.from_config(
        {
            "name": "clip",
            "embed_dim": 128,
            "image": {"image_size": 64, "patch_size": PATCH} | sizes,
            "text": {"vocab_size": 500, "context_length": 30} | sizes,
        }
    )
    leaves = jax.tree_util.tree_leaves_with_path(
        jax.jit(methods.init_variables, static_argnums=0)(method, jax.random.key(11))[0]
    )
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def test_every_parameter_has_a_published_initialization():
    assert fresh_parameters().keys() == INIT.keys()


@pytest.mark.parametrize("path", INIT)
def test_initialization_is_the_published_one(path):
    kind, figure = INIT[path]
    values = fresh_parameters()[path].astype(np.float64)
    if kind == "constant":
        np.testing.assert_array_equal(values, np.float32(figure))
        return
    stddev = figure / math.sqrt(3) if kind == "uniform" else figure
    # Five standard errors, of the mean and of the standard deviation.
    assert abs(values.mean()) < 5 * stddev / math.sqrt(values.size)
    assert abs(values.std() / stddev - 1) < 5 / math.sqrt(2 * values.size)
    if kind == "uniform":
        assert 0.98 * figure < np.abs(values).max() <= figure * (1 + 1e-6)
    else:
        assert np.abs(values).max() > 2 * stddev


def test_no_two_parameters_and_no_two_layers_start_alike():
    drawn = {path: values for path, values in fresh_parameters().items() if INIT[path][0] != "constant"}
    rows = [row.ravel()[:100] for path, values in drawn.items() for row in (values if "blocks" in path else [values])]
    unit = np.stack([(row - row.mean()) / np.linalg.norm(row - row.mean()) for row in rows])
    # Of a hundred independent draws a correlation of 0.6 is six standard errors.
    assert np.abs(unit @ unit.T - np.eye(len(unit))).max() < 0.6
