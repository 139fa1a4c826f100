"""CLIP's towers as published: parameters and arithmetic."""

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
from jaxclip.towers import TextConfig, TextTransformer, ViT, ViTConfig
from jaxclip.towers.layers import LayerNorm
from jaxclip.towers.transformer import BlockConfig, Transformer, layer_keys, published_text_init

# 9 patches and 10 tokens.
IMAGE = ViTConfig(image_size=24, patch_size=8, width=32, layers=2, heads=4, scan=False)
HALF = dataclasses.replace(IMAGE, patch_drop=0.5)
TEXT = TextConfig(vocab_size=50, context_length=7, width=32, layers=2, heads=4, scan=False)

# ---------------------------------------------------------------------------------- the reference in NumPy


def layer_norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def attention(x, p, heads, causal):
    width = x.shape[-1]
    kernels, biases = np.split(p["qkv_kernel"], 3, axis=1), np.split(p["qkv_bias"], 3)
    q, k, v = (x @ kernel + bias for kernel, bias in zip(kernels, biases, strict=True))
    outputs = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        logits = q[..., part] @ k[..., part].swapaxes(-1, -2) / math.sqrt(width // heads)
        if causal:
            later = np.arange(x.shape[-2])[None, :] > np.arange(x.shape[-2])[:, None]
            logits[..., later] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
    return np.concatenate(outputs, axis=-1) @ p["attention_out_kernel"] + p["attention_out_bias"]


def transformer(x, p, heads, causal):
    stacked = p["blocks"]
    for layer in range(len(stacked["qkv_bias"])):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
        x = x + attention(layer_norm(x, block["ln_1"]), block, heads, causal)
        hidden = layer_norm(x, block["ln_2"]) @ block["mlp_in_kernel"] + block["mlp_in_bias"]
        x = x + (hidden / (1 + np.exp(-1.702 * hidden))) @ block["mlp_out_kernel"] + block["mlp_out_bias"]
    return x


def image_reference(p, images, config, kept=None):
    """The states of a vision transformer on float64 images [batch, size, size, 3], which sees the patches in `kept`."""
    side, patch = config.image_size // config.patch_size, config.patch_size
    kernel = p["patch_kernel"].reshape(patch, patch, 3, config.width)
    tokens = [np.broadcast_to(p["class_embedding"] + p["positions"][0], (len(images), config.width))]
    for number in range(side**2) if kept is None else kept:
        row, column = divmod(number, side)
        pixels = images[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        tokens.append(np.einsum("bijc,ijcw->bw", pixels, kernel) + p["positions"][1 + number])
    x = layer_norm(np.stack(tokens, axis=1), p["ln_pre"])
    x = transformer(x, p["transformer"], config.heads, causal=False)
    return layer_norm(x, p["ln_post"])


def text_reference(p, tokens, config):
    """The states of a text transformer."""
    x = p["token_embedding"][tokens] + p["positions"]
    x = transformer(x, p["transformer"], config.heads, causal=True)
    return layer_norm(x, p["ln_final"])


def made_up(build: Callable[[], nnx.Module]) -> tuple[Any, dict[str, Any]]:
    """A module's graph and random parameters for it: gains of one and biases of zero would hide mistakes."""
    graph, state = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        gain = path[-1].key == "scale"
        return np.asarray(gain + 0.2 * rng.standard_normal(leaf.shape), np.float32)

    return graph, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))


def exact(params):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), params)


@functools.cache
def image_tower():
    _, params = made_up(lambda: ViT(IMAGE, rngs=nnx.Rngs(0)))
    return params, np.random.default_rng(2).standard_normal((5, 24, 24, 3)).astype(np.float32)


@functools.cache
def image_embedder(config: ViTConfig):
    graph = nnx.split(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))[0]
    return jax.jit(lambda params, images, keys: nnx.merge(graph, nnx.State(params))(images, Context(keys=keys)))


def keys(seed: int, count: int) -> jax.Array:
    """One random key per image."""
    return jax.random.split(jax.random.key(seed), count)


def embed_images(config: ViTConfig, images, drop_keys=None):
    """The image tower's vectors under another config with the same parameters."""
    return np.asarray(image_embedder(config)(image_tower()[0], images, drop_keys))


@functools.cache
def text_tower():
    graph, params = made_up(lambda: TextTransformer(TEXT, rngs=nnx.Rngs(0)))
    embed = jax.jit(lambda params, tokens, text_end: nnx.merge(graph, nnx.State(params))(tokens, text_end))
    return params, lambda *inputs: np.asarray(embed(params, *(np.asarray(array, np.int32) for array in inputs)))


def test_image_tower_equals_the_reference():
    params, images = image_tower()
    expected = image_reference(exact(params), images.astype(np.float64), IMAGE)
    np.testing.assert_allclose(embed_images(IMAGE, images), expected[:, 0], rtol=0, atol=1e-5)
    graph = nnx.split(nnx.eval_shape(lambda: ViT(IMAGE, rngs=nnx.Rngs(0))))[0]
    tower = nnx.merge(graph, nnx.State(jax.tree.map(jnp.asarray, params)))
    tokens = jax.jit(tower.tokens)(images)
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(tower.pool(tokens), tokens[:, 0])


def test_text_tower_equals_the_reference():
    params, embed = text_tower()
    rng = np.random.default_rng(3)
    tokens, text_end = rng.integers(0, 50, (6, 7)), np.array([0, 1, 2, 4, 6, 6])
    expected = text_reference(exact(params), tokens, TEXT)
    np.testing.assert_allclose(embed(tokens, text_end), expected[np.arange(6), text_end], rtol=0, atol=1e-5)
    graph = nnx.split(nnx.eval_shape(lambda: TextTransformer(TEXT, rngs=nnx.Rngs(0))))[0]
    tower = nnx.merge(graph, nnx.State(jax.tree.map(jnp.asarray, params)))
    states = jax.jit(tower.tokens)(jnp.asarray(tokens, jnp.int32), jnp.asarray(text_end, jnp.int32))
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(tower.pool(states, jnp.asarray(text_end, jnp.int32)), states[np.arange(6), text_end])


# ------------------------------------------------------------------------------------------------ texts


def test_what_follows_the_end_token_never_matters():
    _, embed = text_tower()
    rng = np.random.default_rng(4)
    tokens, text_end = rng.integers(0, 50, (64, 7)), rng.integers(0, 7, 64)
    after = np.arange(7) > text_end[:, None]
    other = np.where(after, rng.integers(0, 50, (64, 7)), tokens)
    np.testing.assert_array_equal(embed(tokens, text_end), embed(other, text_end))


def test_every_token_up_to_the_end_token_matters():
    _, embed = text_tower()
    tokens = np.tile(np.arange(1, 8), (8, 1))
    # Row i has another token at i; the last row is left as it was.
    tokens[np.arange(7), np.arange(7)] = 40
    for text_end in (0, 3, 6):
        embedded = embed(tokens, np.full(8, text_end))
        changed = np.abs(embedded[:-1] - embedded[-1]).max(axis=1) > 1e-3
        np.testing.assert_array_equal(changed, np.arange(7) <= text_end)


def test_a_text_is_read_at_its_end_and_not_at_its_largest_id():
    params, embed = text_tower()
    tokens = np.array([[3, 49, 5, 7, 49, 0, 0]])
    found = [embed(tokens, np.array([end]))[0] for end in range(7)]
    expected = text_reference(exact(params), tokens, TEXT)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    distances = np.abs(np.subtract.outer(found[3], found).diagonal(axis1=0, axis2=2)).max(axis=1)
    assert np.all(distances[np.arange(7) != 3] > 1e-3)


# ---------------------------------------------------------------------------------------- how blocks run


@functools.cache
def run_transformer(scan: bool, remat: str):
    """Value, gradients and the gradient's program of a transformer that runs its blocks so."""
    init = published_text_init(32, LAYERS, 128)
    graph, params = made_up(
        lambda: Transformer(BlockConfig(32, 4), init, layer_keys(nnx.Rngs(5), LAYERS), scan=scan, remat=remat)
    )
    rng = np.random.default_rng(6)
    x, weights = rng.standard_normal((2, 4, 6, 32)).astype(np.float32)

    def value(params, x):
        return jnp.sum(weights * nnx.merge(graph, nnx.State(params))(x, causal=True))

    gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    return *gradient(params, x), jax.make_jaxpr(gradient)(params, x).jaxpr


LAYERS = 2
WAYS = list(itertools.product((False, True), ("none", "dots", "full")))


@pytest.mark.parametrize(("scan", "remat"), WAYS[1:])
def test_scan_and_remat_change_neither_value_nor_gradients(scan, remat):
    expected_value, expected_gradients, _ = run_transformer(*WAYS[0])
    value, gradients, _ = run_transformer(scan, remat)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    # Sums in another order: some eps32 of the largest entry.
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())  # noqa: E731
    jax.tree.map(same, gradients, expected_gradients)


def products(jaxpr) -> int:
    """How many matrix products a program does, counting a loop's body once."""
    inner = [jax.core.jaxprs_in_params(equation.params) for equation in jaxpr.eqns]
    return sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns) + sum(
        products(part) for parts in inner for part in parts
    )


@pytest.mark.parametrize("scan", (False, True))
def test_remat_recomputes_as_much_as_configured(scan):
    none, dots, full = (products(run_transformer(scan, remat)[2]) for remat in ("none", "dots", "full"))
    blocks = 1 if scan else LAYERS
    # Of a block's six products no gradient needs the last again; "dots" redoes the two batched ones of attention.
    assert (dots - none, full - none) == (2 * blocks, 5 * blocks)


def test_scan_compiles_one_block_and_unrolled_all():
    scanned, unrolled = (products(run_transformer(scan, "none")[2]) for scan in (True, False))
    assert unrolled == LAYERS * scanned


def test_layer_norm_takes_its_statistics_in_float32():
    x = jnp.asarray(1000 + np.random.default_rng(7).standard_normal((4, 64)) * 20, jnp.bfloat16)
    found = LayerNorm(64)(x)
    expected = layer_norm(np.asarray(x, np.float64), {"scale": 1.0, "bias": 0.0})
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16.
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-4)


# ---------------------------------------------------------------------------------------- patch dropping


@dataclasses.dataclass(frozen=True)
class Noting(Context):
    """A context that notes the shapes of the activations whose sharding is pinned."""

    seen: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    def constrain(self, x):
        self.seen.append(x.shape)
        return x


@pytest.mark.parametrize(
    ("side", "drop", "kept"), [(3, 0.5, 4), (3, 0.25, 7), (4, 0.5, 8), (4, 0.75, 4), (2, 0.9, 1), (7, 0.1, 44)]
)
def test_dropping_keeps_a_share_of_the_patches(side, drop, kept):
    config = dataclasses.replace(IMAGE, image_size=8 * side, patch_drop=drop)
    tokens = []

    def embed(images, key):
        return ViT(config, rngs=nnx.Rngs(0))(images, Noting(keys=jax.random.split(key), seen=tokens))

    jax.eval_shape(embed, jax.ShapeDtypeStruct((2, 8 * side, 8 * side, 3), jnp.float32), jax.random.key(0))
    assert set(tokens) == {(2, 1 + kept, 32)}


def test_kept_patches_stay_whole_and_at_their_own_positions():
    """Every image's embedding must be that of some four of its nine patches, as the reference computes it."""
    params, images = image_tower()
    found = embed_images(HALF, images, keys(8, len(images)))
    subsets = list(itertools.combinations(range(9), 4))
    candidates = np.stack(
        [image_reference(exact(params), images.astype(np.float64), IMAGE, subset)[:, 0] for subset in subsets]
    )
    distances = np.abs(candidates - found).max(axis=2)
    chosen = [subsets[number] for number in distances.argmin(axis=0)]
    assert np.all(distances.min(axis=0) < 1e-5)
    assert np.all(np.sort(distances, axis=0)[1] > 1e-3), "two subsets are too alike to tell which was taken"
    assert len(set(chosen)) > 1, "every image of the batch lost the same patches"


def test_every_patch_is_kept_as_often_as_any_other():
    images = np.random.default_rng(9).standard_normal((900, 24, 24, 3)).astype(np.float32)
    params, _ = image_tower()
    embed = image_embedder(HALF)
    gradient = jax.grad(lambda images: jnp.sum(embed(params, images, keys(10, 900))[:, 0]))(images)
    # A dropped patch has none.
    kept = np.abs(gradient).reshape(-1, 3, 8, 3, 8, 3).max(axis=(2, 4, 5)).reshape(-1, 9) > 0
    assert np.all(kept.sum(axis=1) == 4)
    # 4 / 9 of 900, within five standard deviations.
    assert np.all(np.abs(kept.sum(axis=0) - 400) < 5 * math.sqrt(900 * 4 / 9 * 5 / 9))


def test_patches_are_dropped_only_with_a_key_and_a_share():
    _, images = image_tower()
    whole = embed_images(IMAGE, images)
    np.testing.assert_array_equal(embed_images(HALF, images), whole)
    np.testing.assert_array_equal(embed_images(IMAGE, images, keys(8, len(images))), whole)
    assert np.abs(embed_images(HALF, images, keys(8, len(images))) - whole).max() > 1e-3


def test_the_key_decides_which_patches_are_dropped():
    _, images = image_tower()
    first, again, other = (embed_images(HALF, images, keys(seed, len(images))) for seed in (8, 8, 9))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
