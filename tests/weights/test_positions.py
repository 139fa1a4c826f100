"""Resizing of position embeddings compared with open_clip's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import made
import numpy as np
import pytest
from cpu_devices import ACCURATE
from paths import GOLDEN

from jaxclip.errors import UserError
from jaxclip.weights.positions import resized


def golden(name: str) -> np.ndarray:
    return np.load(GOLDEN / "embeddings.npz")[name]


def resized_at(path: str, positions: np.ndarray, rows: int) -> jax.Array:
    resize = jax.jit(lambda array: resized({path: array}, {path: (rows, 8)})[path], compiler_options=ACCURATE)
    return resize(jnp.asarray(positions))


@pytest.mark.parametrize("grid", [3, 7, 12])
@pytest.mark.parametrize("path", ["image/positions", "image/attention_pool/positions"])
def test_image_positions_are_resized_as_open_clip_does(path, grid):
    expected = golden(f"positions/image/{grid}")
    found = resized_at(path, made.values("positions", (50, 8)), 1 + grid**2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)


def test_positions_without_a_class_token_are_the_same_grid():
    patches = made.values("positions", (50, 8))[1:]
    found = resized_at("image/positions", patches, 144)
    np.testing.assert_allclose(found, golden("positions/image/12")[1:], rtol=0, atol=2e-7)


@pytest.mark.parametrize("context", [16, 77, 120])
def test_text_positions_are_resized_as_open_clip_does(context):
    found = resized_at("text/positions", made.values("positions", (77, 8)), context)
    np.testing.assert_allclose(found, golden(f"positions/text/{context}"), rtol=0, atol=2e-7)


def test_nothing_else_is_resized():
    arrays = {"image_projection/kernel": jnp.ones((4, 8)), "text/positions": jnp.ones((7, 8)), "other": jnp.ones(3)}
    found = resized(arrays, {"image_projection/kernel": (9, 8), "text/positions": (7, 8)})
    assert all(found[path] is array for path, array in arrays.items())


@pytest.mark.parametrize(("rows", "wanted"), [(50, 48), (51, 50), (49, 50)])
def test_rows_that_are_no_square_grid_are_an_error(rows, wanted):
    with pytest.raises(UserError, match=f"{rows} rows cannot be resized to {wanted}"):
        resized({"image/positions": jnp.ones((rows, 8))}, {"image/positions": (wanted, 8)})
