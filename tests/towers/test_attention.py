"""The form of attention and what the backward pass recomputes: a tower's values and gradients do not depend on them."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from look_up import mesh_of

from jaxclip.context import Context
from jaxclip.towers.attention import SelfAttention
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.text import TextConfig
from jaxclip.towers.vit import ViTConfig

ROWS, VOCABULARY, CONTEXT = 8, 50, 13
SIZE = {"width": 128, "layers": 2, "heads": 2}


def vit(**keys):
    return ViTConfig(image_size=16, patch_size=4, **SIZE, **keys), [np.zeros((ROWS, 16, 16, 3), np.float32)]


def text(**keys):
    return TextConfig(vocab_size=VOCABULARY, context_length=CONTEXT, **SIZE, **keys), None


def bert(**keys):
    return BertConfig(vocab_size=VOCABULARY, context_length=CONTEXT, **SIZE, **keys), None


TOWERS = {"vit": vit, "text": text, "bert": bert}


def gradients(kind: str, ctx: Context, **keys):
    """All states of a tower of seeded weights, and the gradients of a weighted sum of them."""
    config, rows = TOWERS[kind](**keys)
    rng = np.random.default_rng(0)
    if rows is None:
        rows = [rng.integers(0, VOCABULARY, (ROWS, CONTEXT)), rng.integers(1, CONTEXT, ROWS)]
    else:
        rows = [rng.standard_normal(rows[0].shape).astype(np.float32)]
    graph, state = nnx.split(config.init(rngs=nnx.Rngs(params=0)))
    seen = np.ones((ROWS, 1, 1)) if kind != "bert" else (np.arange(CONTEXT) <= rows[1][:, None])[..., None]

    @jax.jit
    def of(state):
        def loss(state):
            states = nnx.merge(graph, state).tokens(*map(jnp.asarray, rows), ctx)
            weights = np.random.default_rng(1).standard_normal(states.shape)
            # What is behind a text's end is nothing that counts.
            return jnp.sum(states * weights * seen) / states.size, states * seen

        return jax.value_and_grad(loss, has_aux=True)(state)

    (_, states), found = of(state)
    return jax.tree.map(np.asarray, (states, nnx.to_pure_dict(found)))


@functools.cache
def expected(kind: str):
    return gradients(kind, Context(attention="plain"))


FORMS = [
    ("kernel", "none", False, 1),
    ("kernel", "products", False, 1),
    ("kernel", "products", True, 8),
    ("plain", "products", False, 1),
    ("plain", "dots", True, 1),
]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(("form", "remat", "scan", "devices"), FORMS)
def test_values_and_gradients_are_those_of_the_plain_form(kind, form, remat, scan, devices):
    ctx = Context(mesh=mesh_of(devices), attention=form)
    found = gradients(kind, ctx, remat=remat, scan=scan)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected(kind)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()), rtol=0)


@pytest.mark.parametrize(
    ("form", "dropped", "width", "tokens", "found"),
    [
        ("auto", False, 128, 13, "plain"),  # On CPU.
        ("kernel", False, 128, 13, "kernel"),
        ("kernel", True, 128, 13, "plain"),  # Only the plain form has dropout.
        ("kernel", False, 96, 13, "plain"),  # Heads of width 48.
        ("kernel", False, 128, 700, "plain"),
    ],
)
def test_what_the_kernel_is_not_made_for_takes_the_plain_form(form, dropped, width, tokens, found):
    ctx = Context(attention=form)
    assert (
        SelfAttention.of(ctx, tokens, width, 2, jnp.float32, causal=False, masked=False, dropped=dropped).form == found
    )


V4, V5E = (types.SimpleNamespace(platform="tpu", device_kind=kind) for kind in ("TPU v4", "TPU v5 lite"))
GPU = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("device", "tokens", "dtype", "masked", "found"),
    [
        (V5E, 577, jnp.bfloat16, True, "kernel"),
        (V4, 197, jnp.bfloat16, False, "kernel"),
        (V4, 577, jnp.bfloat16, False, "plain"),  # Its core has a quarter of the memory.
        (GPU, 577, jnp.bfloat16, False, "cudnn"),
        (GPU, 577, jnp.bfloat16, True, "plain"),
        (GPU, 577, jnp.float32, False, "plain"),
    ],
)
def test_the_form_is_that_of_the_devices(device, tokens, dtype, masked, found):
    ctx = Context(own_device=device)
    chosen = SelfAttention.of(ctx, tokens, 1024, 16, dtype, causal=False, masked=masked, dropped=False)
    assert chosen.form == found
    assert chosen.padding == (0 if found == "plain" else -tokens % 8)
    plain = SelfAttention.of(
        dataclasses.replace(ctx, attention="plain"), tokens, 1024, 16, dtype, causal=False, masked=False, dropped=False
    )
    assert plain.form == "plain"
