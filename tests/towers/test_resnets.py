"""CLIP's and torchvision's ResNets: parameters, initialization and arithmetic, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_devices import ACCURATE
from flax import nnx

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.context import Context
from jaxclip.errors import UserError
from jaxclip.towers.batch_norm import BatchNorm
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.towers.rngs import Rngs

TRAIN = Context(key=jax.random.key(0))
# Two heads, and a last stage of 2 x 2 pixels. The second stage has a bottleneck of either kind.
MODIFIED = ModifiedResNetConfig(image_size=64, width=4, layers=(1, 2, 1, 1))
# An odd size: 33 pixels become 17, 9, 9, 5, 3 and 2, and every padding shows.
PLAIN = ResNetConfig(image_size=33, width=4, layers=(1, 2, 1, 1))
CONFIGS = {"modified": MODIFIED, "plain": PLAIN}
both = pytest.mark.parametrize("name", CONFIGS)

# ---------------------------------------------------------------------------------------------- counts


def paths(tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(config, kind: type) -> dict[str, jax.ShapeDtypeStruct]:
    tower = nnx.eval_shape(lambda: config.init(rngs=Rngs(0)))
    return paths(nnx.to_pure_dict(nnx.state(tower, kind)))


# image size, width, bottlenecks, embedding: parameters of the published image towers with their projection.
COUNTS = {
    (224, 64, (3, 4, 6, 3), 1024): 38_316_896,
    (224, 64, (3, 4, 23, 3), 512): 56_259_936,
    (288, 80, (4, 6, 10, 6), 640): 87_137_080,
    (384, 96, (6, 8, 18, 8), 768): 167_328_912,
    (448, 128, (3, 15, 36, 10), 1024): 420_380_352,
}


@pytest.mark.parametrize(("size", "width", "layers", "embed"), COUNTS)
def test_clips_resnets_have_the_published_numbers_of_parameters(size, width, layers, embed):
    found = shapes(ModifiedResNetConfig(size, width, layers), nnx.Param)
    projection = (32 * width + 1) * embed
    assert sum(leaf.size for leaf in found.values()) + projection == COUNTS[size, width, layers, embed]
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}


def test_the_resnet_50_has_torchvisions_parameters_without_its_classifier():
    found = shapes(ResNetConfig(224), nnx.Param)
    assert sum(leaf.size for leaf in found.values()) == 23_508_032
    # Every BatchNorm has two averages beside its two parameters.
    averages = shapes(ResNetConfig(224), nnx.BatchStat)
    assert sum(leaf.size for leaf in averages.values()) == 53_120
    assert {path.rpartition("/")[0] for path in averages} == {
        path.rpartition("/")[0] for path in found if path.endswith("scale")
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: ModifiedResNetConfig(100, 64, (1, 1, 1, 1)), "image_size=100 must be a multiple of 32"),
        (lambda: ModifiedResNetConfig(64, 63, (1, 1, 1, 1)), "width=63 must be even"),
        (lambda: ModifiedResNetConfig(64, 0, (1, 1, 1, 1)), "width=0 must be at least 1"),
        (lambda: ModifiedResNetConfig(64, 64, (1, 1, 0, 1)), "layers=(1, 1, 0, 1) must be four numbers"),
        (lambda: ResNetConfig(0), "image_size=0 must be at least 1"),
        (lambda: ResNetConfig(32, norm_groups=0), "norm_groups=0 must be at least 1"),
    ],
)
def test_a_tower_that_cannot_be_is_one_line(config, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config()


# ---------------------------------------------------------------------------------- the reference in NumPy


def conv(x, kernel, stride, padding):
    """By its definition: each output pixel is a sum over the kernel's places."""
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    side = (x.shape[1] - size) // stride + 1
    last = stride * (side - 1) + 1
    return sum(
        x[:, i : i + last : stride, j : j + last : stride] @ kernel[i, j] for i in range(size) for j in range(size)
    )


def pool(x, size, stride, padding, reduce):
    fill = -np.inf if reduce is np.max else 0.0
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    starts = range(0, x.shape[1] - size + 1, stride)
    return np.stack(
        [np.stack([reduce(x[:, i : i + size, j : j + size], axis=(1, 2)) for j in starts], axis=1) for i in starts],
        axis=1,
    )


def batch_norm(x, p, train):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (p["mean"], p["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def relu(x):
    return np.maximum(x, 0)


def stages(x, p, layers, train, pooled):
    for stage, blocks in enumerate(layers):
        for number in range(blocks):
            b = p[f"layer{stage + 1}_{number}"]
            by = 2 if stage > 0 and number == 0 else 1
            stride = 1 if pooled else by
            y = relu(batch_norm(conv(x, b["conv1_kernel"], 1, 0), b["bn1"], train))
            y = relu(batch_norm(conv(y, b["conv2_kernel"], stride, 1), b["bn2"], train))
            if pooled and by == 2:
                x, y = (pool(z, 2, 2, 0, np.mean) for z in (x, y))
            y = batch_norm(conv(y, b["conv3_kernel"], 1, 0), b["bn3"], train)
            if number == 0:
                x = batch_norm(conv(x, b["downsample_kernel"], stride, 0), b["downsample_bn"], train)
            x = relu(x + y)
    return x


def attention_pool(x, p, heads):
    x = x.reshape(len(x), -1, x.shape[-1])
    x = np.concatenate([x.mean(1, keepdims=True), x], axis=1) + p["positions"]
    q, k, v = (x @ p[f"{name}_kernel"] + p[f"{name}_bias"] for name in "qkv")
    width = x.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = np.einsum("bc,bnc->bn", q[:, 0, part], k[..., part]) / math.sqrt(width)
        attention = np.exp(logits - logits.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        outputs.append(np.einsum("bn,bnc->bc", attention, v[..., part]))
    return np.concatenate(outputs, axis=-1)


def reference(name, p, x, train):
    """The grid and the pooled vector."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (p, x))
    config = CONFIGS[name]
    if name == "modified":
        for number, stride in (1, 2), (2, 1), (3, 1):
            x = relu(batch_norm(conv(x, p[f"conv{number}_kernel"], stride, 1), p[f"bn{number}"], train))
        x = stages(pool(x, 2, 2, 0, np.mean), p, config.layers, train, pooled=True)
        return x, attention_pool(x, p["attention_pool"], 2)
    x = relu(batch_norm(conv(x, p["conv1_kernel"], 2, 3), p["bn1"], train))
    x = stages(pool(x, 3, 2, 1, np.max), p, config.layers, train, pooled=False)
    return x, x.mean((1, 2))


@functools.cache
def made_up(name: str):
    """A tower's graph, and random values for all it holds; gains of one and biases of zero would hide mistakes."""
    graph, state = nnx.split(nnx.eval_shape(lambda: CONFIGS[name].init(rngs=Rngs(0))))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        if path[-1].key == "var":
            values = np.exp(0.3 * values)
        elif len(leaf.shape) == 1:
            values = (path[-1].key == "scale") + 0.2 * values
        else:
            values *= math.sqrt(2 / math.prod(leaf.shape[:-1]))
        return jnp.asarray(values, jnp.float32)

    return graph, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))


def images(name: str, rows: int = 4) -> jax.Array:
    size = CONFIGS[name].image_size
    return jnp.asarray(np.random.default_rng(2).standard_normal((rows, size, size, 3)), jnp.float32)


def bound(name: str, variables, **changes) -> Any:
    """The made-up tower over other variables, under a config with changes."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    graph, _ = nnx.split(nnx.eval_shape(lambda: config.init(rngs=Rngs(0))))
    return nnx.merge(graph, nnx.State(variables))


@both
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_a_tower_equals_the_reference(name, train):
    _, variables = made_up(name)
    x = images(name)
    ctx = TRAIN if train else Context()

    @functools.partial(jax.jit, compiler_options=ACCURATE)
    def run(variables, x):
        grid = bound(name, variables).grid(x, ctx)
        tower = bound(name, variables)
        return grid, tower(x, ctx), bound(name, variables).tokens(x, ctx), tower.pool(grid)

    grid, pooled, tokens, again = run(variables, x)
    # The statistics of the last stage, of 16 values each, multiply the rounding of all before.
    for found, expected in zip((grid, pooled), reference(name, variables, x, train), strict=True):
        atol = (1e-4 if train else 1e-5) * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    np.testing.assert_array_equal(tokens, grid.reshape(4, 4, 128))
    np.testing.assert_allclose(again, pooled, rtol=0, atol=1e-6 * np.abs(pooled).max())
    assert pooled.shape[1] == CONFIGS[name].output_width


@both
def test_a_tower_computes_in_the_images_dtype(name):
    _, variables = made_up(name)
    x = images(name).astype(jnp.bfloat16)
    tower = lambda variables, x: bound(name, variables)(x)  # noqa: E731
    found = jax.jit(tower)(variables, x)
    assert found.dtype == jnp.bfloat16
    assert " f32[4,64,64" not in str(jax.make_jaxpr(tower)(variables, x))
    _, expected = reference(name, variables, x.astype(jnp.float32), False)
    # Some twenty roundings to eight bits, one behind the other.
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=0.05 * np.abs(expected).max())


@both
def test_activations_are_pinned_behind_the_stem_and_after_each_stage(name):
    _, variables = made_up(name)
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Noting(Context):
        def constrain(self, x):
            seen.append(x.shape[1:])
            return x

    jax.eval_shape(lambda x: bound(name, variables)(x, Noting(key=jax.random.key(0))), images(name))
    sides = {"modified": (16, 16, 8, 4, 2), "plain": (9, 9, 5, 3, 2)}[name]
    assert seen == [(side, side, c) for side, c in zip(sides, (4, 16, 32, 64, 128), strict=True)]


# ------------------------------------------------------------------------------- training, remat and devices


@functools.cache
def training(name: str, remat: str, devices: int = 1):
    """Embeddings, gradients, new running averages and the compiled program."""
    gradient, mesh, *inputs = differentiated(name, remat, devices)
    with jax.sharding.set_mesh(mesh):
        compiled = jax.jit(gradient).lower(*inputs).compile(ACCURATE)
        (_, (y, averages)), gradients = compiled(*inputs)
    return y, gradients, averages, compiled.as_text()


def differentiated(name: str, remat: str, devices: int = 1):
    """The function of a tower's value and gradients, the devices, and its arguments."""
    _, variables = made_up(name)
    x = images(name, 8)
    weights = jnp.asarray(np.random.default_rng(3).standard_normal((8, 128)), jnp.float32)
    mesh = sharding.create(MeshConfig(), jax.devices()[:devices])
    ctx = dataclasses.replace(TRAIN, mesh=mesh)

    def value(variables, x):
        tower = bound(name, variables, remat=remat)
        y = tower(x, ctx)
        return jnp.sum(weights * y), (y, nnx.to_pure_dict(nnx.state(tower, nnx.BatchStat)))

    gradient = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
    return gradient, mesh, variables, jax.device_put(x, sharding.batch_sharding(mesh))


def assert_same(found, expected, tolerance):
    """Within a share of each array's largest entry."""
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (np.abs(b).max() + 1e-3))  # noqa: E731
    jax.tree.map(same, jax.device_get(found), jax.device_get(expected))


def count(jaxpr, *names: str) -> int:
    """How many operations of these names a program does."""
    inner = [part for equation in jaxpr.eqns for part in jax.core.jaxprs_in_params(equation.params)]
    return sum(equation.primitive.name in names for equation in jaxpr.eqns) + sum(count(part, *names) for part in inner)


def test_remat_recomputes_as_much_as_configured():
    def products(remat: str) -> int:
        gradient, _, *inputs = differentiated("modified", remat)
        return count(jax.make_jaxpr(gradient)(*inputs).jaxpr, "conv_general_dilated", "dot_general")

    none, dots, full = map(products, ("none", "dots", "full"))
    # A bottleneck has three convolutions, and four of the five another one for the shortcut.
    assert (dots - none, full - none) == (0, 3 * 5 + 4)


def test_statistics_are_gathered_once_whatever_is_recomputed():
    none, full = (training("plain", remat, 8)[3].count(" all-reduce(") for remat in ("none", "full"))
    assert none == full


@pytest.mark.parametrize(("name", "remat"), [("modified", "dots"), ("plain", "full")])
def test_neither_remat_nor_devices_change_value_gradients_or_running_averages(name, remat):
    """Both at once: what depends on one of them depends on both."""
    assert_same(training(name, remat, 8)[:3], training(name, "none")[:3], 1e-4)


@both
def test_a_locked_tower_trains_by_its_running_averages(name):
    _, variables = made_up(name)

    @jax.jit
    def run(variables, x):
        tower = bound(name, variables)
        tower.set_attributes(BatchNorm, locked=True)
        return tower(x), tower(x, TRAIN), nnx.to_pure_dict(nnx.state(tower))

    evaluated, trained, after = run(variables, images(name))
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, after, variables)


# ------------------------------------------------------------------------------------ the published start

ONES, ZEROS = ("constant", 1.0), ("constant", 0.0)
WIDTH, OUTPUTS = 16, 16 * 32


def modified_init(path, shape):
    """OpenAI's clip/model.py, and what torch.nn.Conv2d and Linear begin with."""
    if path.startswith("attention_pool"):
        return ("uniform" if path.endswith("bias") else "normal"), OUTPUTS**-0.5
    if path.endswith("_kernel"):
        return "uniform", math.prod(shape[:-1]) ** -0.5
    last = path.startswith("layer") and path.endswith("bn3/scale")
    return ONES if path.endswith("scale") and not last else ZEROS


def plain_init(path, shape):
    """torchvision's models/resnet.py: Kaiming-normal by the fan out."""
    if path.endswith("_kernel"):
        return "normal", math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
    return ONES if path.endswith("scale") else ZEROS


@both
def test_initialization_is_the_published_one(name):
    config = dataclasses.replace(CONFIGS[name], width=WIDTH, layers=(1, 1, 1, 1))
    # A key of this kind compiles in a fifth of the time.
    key = jax.random.key(4, impl="rbg")
    tower = jax.jit(lambda: nnx.to_pure_dict(nnx.state(config.init(rngs=Rngs(key)), nnx.Param)))()
    firsts = set()
    for path, leaf in paths(tower).items():
        values = np.asarray(leaf, np.float64)
        kind, figure = (modified_init if name == "modified" else plain_init)(path, values.shape)
        if kind == "constant":
            assert np.all(values == figure), path
            continue
        stddev = figure / math.sqrt(3) if kind == "uniform" else figure
        # Five standard errors, of the mean and of the standard deviation.
        assert abs(values.mean()) < 5 * stddev / math.sqrt(values.size), path
        assert abs(values.std() / stddev - 1) < 5 / math.sqrt(2 * values.size), path
        assert (np.abs(values).max() <= figure * (1 + 1e-6)) == (kind == "uniform"), path
        firsts.add(float(values.flat[0] / figure))
    drawn = [path for path in paths(tower) if "kernel" in path or path.startswith("attention")]
    assert len(firsts) == len(drawn), "two parameters start alike"
