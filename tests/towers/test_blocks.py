"""The shared transformer block: norms before or after, cross-attention and masks; attention pooling; BERT."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.pooling import MapHead
from jaxclip.towers.transformer import BlockConfig, Transformer, attend, layer_keys, published_image_init

WIDTH, HEADS, CONTEXT_WIDTH, LAYERS, EPS = 16, 4, 12, 2, 1e-3
BATCH, TOKENS, CONTEXT = 4, 6, 5
INIT = published_image_init(WIDTH, 24)

# ---------------------------------------------------------------------------------- the reference in NumPy


def layer_norm(x, p, eps=EPS):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def attention(q, k, v, heads, seen):
    """seen: [batch, queries, keys], which keys each query may see; the others are not there at all."""
    result = np.empty(q.shape)
    for part in np.split(np.arange(q.shape[-1]), heads):
        for row, query in np.ndindex(q.shape[:2]):
            kept = np.flatnonzero(seen[row, query])
            logits = k[row][kept][:, part] @ q[row, query, part] / math.sqrt(len(part))
            weights = np.exp(logits - logits.max())
            result[row, query, part] = weights / weights.sum() @ v[row][kept][:, part]
    return result


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def linear(x, p, name):
    return x @ p[f"{name}_kernel"] + p[f"{name}_bias"]


def mlp(x, p):
    return linear(gelu(linear(x, p, "mlp_in")), p, "mlp_out")


def blocks(x, p, heads, norm, seen, context=None, context_seen=None, eps=EPS):
    for layer in range(len(p["qkv_bias"])):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p)

        def self_attention(x, block=block):
            q, k, v = np.split(linear(x, block, "qkv"), 3, axis=-1)
            return linear(attention(q, k, v, heads, seen), block, "attention_out")

        def cross_attention(x, block=block):
            k, v = np.split(linear(context, block, "cross_kv"), 2, axis=-1)
            return linear(attention(linear(x, block, "cross_q"), k, v, heads, context_seen), block, "cross_out")

        branches = [("ln_1", self_attention), ("ln_2", functools.partial(mlp, p=block))]
        if context is not None:
            branches.insert(1, ("ln_cross", cross_attention))
        for name, branch in branches:
            ln = functools.partial(layer_norm, p=block[name], eps=eps)
            x = x + branch(ln(x)) if norm == "pre" else ln(x + branch(x))
    return x


def made_up(build: Callable[[], nnx.Module]) -> tuple[Any, Any, Any]:
    """A module's graph and random parameters for it, and these in float64."""
    graph, state = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        return np.asarray((path[-1].key == "scale") + 0.3 * rng.standard_normal(leaf.shape), np.float32)

    params = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    return graph, params, jax.tree.map(lambda leaf: leaf.astype(np.float64), params)


# ---------------------------------------------------------------------------------------------- one block


@functools.cache
def transformer(norm: str, context_width: int, causal: bool, scan: bool = True):
    config = BlockConfig(WIDTH, HEADS, 24, "gelu", EPS, norm, context_width)
    graph, params, exact = made_up(
        lambda: Transformer(config, INIT, layer_keys(nnx.Rngs(params=0), LAYERS), scan=scan, remat="none")
    )
    run = lambda params, x, **inputs: nnx.merge(graph, nnx.State(params))(x, causal=causal, **inputs)  # noqa: E731
    return functools.partial(jax.jit(run), params), exact["blocks"]


@functools.cache
def inputs() -> dict[str, jax.Array]:
    rng = np.random.default_rng(2)
    mask = rng.random((BATCH, TOKENS)) < 0.6
    context_mask = rng.random((BATCH, CONTEXT)) < 0.6
    # Every query attends to at least one key: the first one, as in causal attention.
    mask[:, 0] = context_mask[:, 2] = True
    return {
        "x": jnp.asarray(rng.standard_normal((BATCH, TOKENS, WIDTH)), jnp.float32),
        "mask": jnp.asarray(mask),
        "context": jnp.asarray(rng.standard_normal((BATCH, CONTEXT, CONTEXT_WIDTH)), jnp.float32),
        "context_mask": jnp.asarray(context_mask),
    }


def chosen(masked: bool, crossed: bool) -> dict[str, jax.Array]:
    names = ["x", *(["mask"] if masked else []), *(["context"] if crossed else [])]
    return {name: inputs()[name] for name in [*names, *(["context_mask"] if masked and crossed else [])]}


WAYS = [*itertools.product(("pre", "post"), (False, True), (False, True), (False, True))]


@pytest.mark.parametrize(("norm", "crossed", "causal", "masked"), WAYS)
def test_blocks_equal_the_reference(norm, crossed, causal, masked):
    run, p = transformer(norm, CONTEXT_WIDTH * crossed, causal)
    given = chosen(masked, crossed)
    exact = {name: np.asarray(values, float) for name, values in given.items()}
    seen = np.tril(np.ones((TOKENS, TOKENS))) if causal else np.ones((TOKENS, TOKENS))
    seen = seen * (exact["mask"][:, None, :] if masked else np.ones((BATCH, 1, 1)))
    context_seen = np.ones((BATCH, TOKENS, 1)) * (exact["context_mask"][:, None] if masked and crossed else 1)
    context_seen = np.broadcast_to(context_seen, (BATCH, TOKENS, CONTEXT))
    expected = blocks(exact["x"], p, HEADS, norm, seen, exact.get("context"), context_seen)
    np.testing.assert_allclose(run(**given), expected, rtol=0, atol=1e-5)


def test_unrolled_blocks_get_the_masks_and_the_context_too():
    scanned, unrolled = (
        transformer("post", CONTEXT_WIDTH, True, scan)[0](**chosen(True, True)) for scan in (True, False)
    )
    np.testing.assert_allclose(unrolled, scanned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_masked_tokens_and_masked_context_never_matter(norm):
    """Not even if they are huge: their weight is exactly zero."""
    run, _ = transformer(norm, CONTEXT_WIDTH, False)
    given = chosen(True, True)
    mask, context_mask = given["mask"][..., None], given["context_mask"][..., None]
    # A token's own state is in its own row, whether others see it or not.
    other = {"x": jnp.where(mask, given["x"], 1e3), "context": jnp.where(context_mask, given["context"], -1e4)}
    found, expected = run(**given | other), run(**given)
    np.testing.assert_array_equal(np.where(mask, found, 0), np.where(mask, expected, 0))
    seen = run(**given | {"context": given["context"].at[:, 2].add(1.0)})
    assert np.abs(seen - expected).max() > 1e-2


def test_a_query_that_may_see_nothing_stays_finite():
    rng = np.random.default_rng(3)
    q, k, v = jnp.asarray(rng.standard_normal((3, 1, 4, 8)), jnp.float32)
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(attend(q, k, v, 2, mask=jnp.zeros((1, 4), bool))))(q)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


# ------------------------------------------------------------------------------------------------- MapHead


def test_attention_pooling_equals_the_reference():
    config = BlockConfig(WIDTH, HEADS, 24, "gelu", EPS)
    graph, params, p = made_up(lambda: MapHead(config, INIT, rngs=nnx.Rngs(params=0)))
    x = inputs()["x"]
    found = jax.jit(lambda params, x: nnx.merge(graph, nnx.State(params))(x))(params, x)
    kernels, biases = np.split(p["qkv_kernel"], 3, axis=1), np.split(p["qkv_bias"], 3)
    probe = np.broadcast_to(p["probe"], (BATCH, 1, WIDTH))
    rows = (probe, np.asarray(x, float), np.asarray(x, float))
    q, k, v = (row @ kernel + bias for row, kernel, bias in zip(rows, kernels, biases, strict=True))
    pooled = linear(attention(q, k, v, HEADS, np.ones((BATCH, 1, TOKENS)))[:, 0], p, "attention_out")
    # The residual is of what was pooled; the probe itself is not in it.
    expected = pooled + mlp(layer_norm(pooled, p["ln"]), p)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_attention_pooling_does_not_see_the_order_of_the_tokens():
    graph, params, _ = made_up(lambda: MapHead(BlockConfig(WIDTH, HEADS, 24), INIT, rngs=nnx.Rngs(params=0)))
    run = functools.partial(jax.jit(lambda params, x: nnx.merge(graph, nnx.State(params))(x)), params)
    x = inputs()["x"]
    np.testing.assert_allclose(run(x[:, ::-1]), run(x), rtol=0, atol=1e-5)
    assert np.abs(run(x.at[:, 3].add(1.0)) - run(x)).max() > 1e-3


# ---------------------------------------------------------------------------------------------------- BERT

BERT = BertConfig(vocab_size=40, context_length=TOKENS, width=WIDTH, layers=LAYERS, heads=HEADS, mlp_width=24, eps=EPS)


@functools.cache
def bert():
    graph, params, exact = made_up(lambda: BERT.init(rngs=nnx.Rngs(params=0)))

    @jax.jit
    def run(params, tokens, text_end):
        tower = nnx.merge(graph, nnx.State(params))
        return tower(tokens, text_end), tower.tokens(tokens, text_end)

    return params, run, exact


def texts(seed: int = 4) -> tuple[jax.Array, jax.Array]:
    tokens = np.random.default_rng(seed).integers(0, 40, (BATCH, TOKENS), dtype=np.int32)
    return jnp.asarray(tokens), jnp.asarray([1, 2, 4, TOKENS - 1], jnp.int32)


def test_bert_equals_the_reference():
    params, run, p = bert()
    tokens, text_end = texts()
    x = p["token_embedding"][np.asarray(tokens)] + p["positions"] + p["segments"][0]
    seen = np.broadcast_to((np.arange(TOKENS) <= np.asarray(text_end)[:, None])[:, None], (BATCH, TOKENS, TOKENS))
    lower = blocks(layer_norm(x, p["ln_embedding"]), p["lower"]["blocks"], HEADS, "post", seen)
    states = blocks(lower, p["upper"]["blocks"], HEADS, "post", seen)
    embedded, found = run(params, tokens, text_end)
    np.testing.assert_allclose(found, states, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedded, states[:, 0], rtol=0, atol=1e-5)


def test_what_follows_the_end_of_a_text_never_matters_to_bert_and_all_else_does():
    params, run, _ = bert()
    tokens, text_end = texts()
    inside = np.arange(TOKENS) <= np.asarray(text_end)[:, None]
    other = jnp.where(inside, tokens, texts(5)[0])
    np.testing.assert_array_equal(run(params, other, text_end)[0], run(params, tokens, text_end)[0])
    for place in range(TOKENS):
        changed = tokens.at[:, place].set((tokens[:, place] + 1) % 40)
        difference = np.abs(run(params, changed, text_end)[0] - run(params, tokens, text_end)[0]).max(axis=1)
        np.testing.assert_array_equal(difference > 1e-4, inside[:, place])


def test_berts_second_segment_is_there_for_its_weights_alone():
    params, run, _ = bert()
    segments = params["segments"].copy()
    segments[1] += 1
    given = texts()
    np.testing.assert_array_equal(run(params | {"segments": segments}, *given)[0], run(params, *given)[0])


def test_bert_computes_in_the_dtype_asked_for():
    tower = nnx.eval_shape(lambda: BERT.init(rngs=nnx.Rngs(params=0)))
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, state = nnx.split(tower)
        ctx = Context(dtype=dtype)
        run = lambda state, *given, ctx=ctx, graph=graph: nnx.merge(graph, state)(*given, ctx)  # noqa: E731
        assert jax.eval_shape(run, state, *texts()).dtype == dtype


def test_bert_base_has_the_published_number_of_parameters():
    tower = nnx.eval_shape(lambda: BertConfig().init(rngs=nnx.Rngs(params=0)))
    sizes = jax.tree.map(lambda leaf: leaf.size, nnx.to_pure_dict(nnx.state(tower)))
    # bert-base-uncased's 109,482,240 without the pooler's matrix and bias.
    assert sum(jax.tree.leaves(sizes)) == 109_482_240 - 768 * 769


def test_bert_starts_as_published():
    key = jax.random.key(0, impl="rbg")
    config = BertConfig(vocab_size=400, context_length=50, width=64, layers=2, heads=4)
    tower = jax.jit(lambda: nnx.to_pure_dict(nnx.state(config.init(rngs=nnx.Rngs(params=key)))))()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tower):
        values, name = np.asarray(leaf, float), path[-1].key
        if name in ("scale", "bias") or name.endswith("_bias"):
            assert np.all(values == (name == "scale")), path
            continue
        stddev = 0.02
        assert abs(values.mean()) < 5 * stddev / math.sqrt(values.size), path
        # Five standard errors.
        assert abs(values.std() / stddev - 1) < 5 / math.sqrt(2 * values.size), path


def test_the_division_of_bert_changes_neither_initialization_nor_states():
    """All blocks in the upper half, one of three below, and half by default, which of three is one."""
    given, states, starts = texts(), [], []
    for lower in (0, 2, -1):
        config = dataclasses.replace(BERT, layers=3, lower=lower)
        tower = config.init(rngs=nnx.Rngs(params=3))
        halves = [tower.lower.blocks, tower.upper.blocks] if lower else [tower.upper.blocks]
        assert [half.qkv_bias.shape[0] for half in halves] == {0: [3], 2: [2, 1], -1: [1, 2]}[lower]
        starts.append(np.concatenate([half.qkv_kernel[...] for half in halves]))
        states.append(tower.tokens(*given))
    for other in (1, 2):
        np.testing.assert_array_equal(starts[other], starts[0])
        np.testing.assert_allclose(states[other], states[0], rtol=0, atol=1e-5)


def test_a_bert_of_one_layer_has_the_upper_half_alone():
    config = dataclasses.replace(BERT, layers=1)
    tower = nnx.eval_shape(lambda: config.init(rngs=nnx.Rngs(params=0)))
    assert config.lower_layers == 0 and not hasattr(tower, "lower")


@pytest.mark.parametrize("lower", [-2, 2])
def test_a_lower_half_that_cannot_be_is_one_line(lower):
    with pytest.raises(UserError, match=f"lower={lower} must be below layers=2"):
        dataclasses.replace(BERT, lower=lower)


def test_berts_upper_half_can_read_an_image():
    """ALBEF's fusion: the lower half encodes the text, the upper one attends to tokens of an image too."""
    tower = BERT.init(rngs=nnx.Rngs(params=0), context_width=CONTEXT_WIDTH)
    given, context = texts(), inputs()["context"]
    encoded = tower.lower_states(*given)
    fused = tower.upper_states(encoded, given[1], context=context)
    other = tower.upper_states(encoded, given[1], context=context.at[0].add(1.0))
    assert encoded.shape == fused.shape == (BATCH, TOKENS, WIDTH)
    changed = np.abs(fused - other).max(axis=(1, 2)) > 1e-5
    np.testing.assert_array_equal(changed, [True, False, False, False])
    assert not hasattr(tower.lower.blocks, "cross_q_kernel")
