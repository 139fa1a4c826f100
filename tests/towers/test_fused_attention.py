"""The attention kernel, interpreted: its values and gradients are those of plain attention."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.towers.attention import attend
from jaxclip.towers.fused_attention import HEAD_WIDTH, ROWS, Rows, at_once, fused_attention, suits

# (heads, tokens, causal, masked): short and long rows, one pair of heads to three, each kind of mask.
DRAWN = np.random.default_rng(0)
SHAPES = [
    (int(DRAWN.choice([2, 4, 6])), int(DRAWN.integers(1, 120)), bool(DRAWN.integers(2)), bool(DRAWN.integers(2)))
    for _ in range(9)
]
SHAPES += [(4, 50, False, False), (4, 77, True, False), (2, 197, False, False), (8, 257, False, True)]
SHAPES += [(4, 577, False, False)]
BATCH, DRAWS = 2, 15


def plain(qkv, bias, mask, heads, causal):
    q, k, v = jnp.split(qkv + bias, 3, axis=-1)
    return attend(q, k, v, heads, causal=causal, mask=mask)


def kernel(qkv, bias, mask, heads, causal):
    tokens = qkv.shape[1]
    pad = ((0, 0), (0, -tokens % ROWS), (0, 0))
    masks = None if mask is None else jnp.pad(mask.astype(jnp.int32)[:, None], ((0, 0), (0, 0), pad[1]))
    rows = Rows(tokens, causal, mask is not None, interpret=True)
    # Padding that is not 0 must not matter.
    padded = jnp.pad(qkv, pad, constant_values=3.0)
    return fused_attention(padded + jax.lax.stop_gradient(bias), bias, masks, rows)[:, :tokens]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def value_and_gradients(function, qkv, bias, mask, heads, causal, weights):
    out, pullback = jax.vjp(lambda qkv, bias: function(qkv, bias, mask, heads, causal), qkv, bias)
    return out, *pullback(weights)


@pytest.mark.parametrize(("heads", "tokens", "causal", "masked"), SHAPES)
def test_values_and_gradients_are_those_of_plain_attention(heads, tokens, causal, masked):
    rng = np.random.default_rng(tokens)
    width = heads * HEAD_WIDTH
    assert suits(tokens, width, heads)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    for _ in range(DRAWS):
        qkv, bias, weights = draw(BATCH, tokens, 3 * width), draw(3 * width), draw(BATCH, tokens, width)
        mask = None
        if masked:
            mask = jnp.asarray(rng.random((BATCH, tokens)) < 0.7).at[:, 0].set(True)
        found = value_and_gradients(kernel, qkv, bias, mask, heads, causal, weights)
        expected = value_and_gradients(plain, qkv, bias, mask, heads, causal, weights)
        for name, one, other in zip(("values", "qkv", "bias"), found, expected, strict=True):
            scale = max(1.0, float(jnp.max(jnp.abs(other))))
            np.testing.assert_allclose(one, other, atol=1e-5 * scale, rtol=0, err_msg=name)


def test_a_loop_runs_over_all_pairs_of_heads():
    """Each pair is in one piece of code, whatever number of pairs and tokens."""
    for pairs in range(1, 17):
        for tokens in (50, 257, 577):
            assert pairs % at_once(tokens, pairs) == 0
