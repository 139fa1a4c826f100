"""The contrastive losses compiled for TPUs at sizes too large to run: memory, values, collectives."""

from __future__ import annotations

import collections
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.losses import sigmoid_contrastive, softmax_contrastive
from jaxclip.losses.layouts import Blocks, Layout, Ring, choose_layout
from jaxclip.plan.chips import topology
from jaxclip.plan.hlo import Program, entries

pytestmark = pytest.mark.tpu_compile

MIB = 2**20
PODS = {8: "v5e:2x4", 256: "v5e:16x16"}


@functools.cache
def mesh_of(devices: int) -> Mesh:
    return sharding.create(MeshConfig(), topology(PODS[devices]).devices)


@functools.cache
def compiled(devices: int, batch: int, width: int, loss: str = "softmax", layout: Layout | None = None):
    """Value and gradient by both embeddings, which are bfloat16 and lie on all devices, and by the scale (and bias)."""
    mesh = mesh_of(devices)
    rows = jax.ShapeDtypeStruct((batch, width), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))

    def softmax(images, texts, scale):
        return softmax_contrastive(images, texts, scale, mesh=mesh, layout=layout)[0]

    def sigmoid(images, texts, scale, bias):
        return sigmoid_contrastive(images, texts, scale, bias, mesh=mesh, layout=layout)

    function, scalars = (softmax, (scalar,)) if loss == "softmax" else (sigmoid, (scalar, scalar))
    arguments = (rows, rows, *scalars)
    gradients = jax.value_and_grad(function, argnums=tuple(range(len(arguments))))
    shardings = (scalar.sharding, tuple(argument.sharding for argument in arguments))
    return jax.jit(gradients, out_shardings=shardings).lower(*arguments).compile()


BARS = [(256, 32_768, 768, 40), (256, 1_048_576, 1024, 120), (8, 1_048_576, 768, 2560)]


@pytest.mark.parametrize(("devices", "batch", "width", "most"), BARS)
@pytest.mark.parametrize("loss", ("softmax", "sigmoid"))
def test_peak_memory(loss, devices, batch, width, most):
    assert compiled(devices, batch, width, loss).memory_analysis().peak_memory_in_bytes <= most * MIB


@pytest.mark.parametrize(("devices", "batch", "width"), [bar[:3] for bar in BARS])
@pytest.mark.parametrize("loss", ("softmax", "sigmoid"))
def test_no_value_is_as_large_as_a_quarter_of_the_logits(loss, devices, batch, width):
    """Of a device's batch / devices x batch logits. Embeddings, gathered or not, may be as large as they are."""
    layout = choose_layout(batch, width, 2, devices)
    sides = layout.grid if isinstance(layout, Blocks) else (devices, devices)
    embeddings = {f"[{rows},{width}]" for rows in (*(batch // side for side in sides), batch // devices)}
    shapes = Program(compiled(devices, batch, width, loss).as_text()).shapes()
    others = [shape for shape in shapes if not any(shape.endswith(known) for known in embeddings)]
    assert len(others) < len(shapes)
    assert max(map(entries, others)) < batch * batch // devices / 4


def collectives(devices: int, batch: int, width: int, loss: str, layout: Layout | None = None):
    """By kind, the bytes of each as often as it runs."""
    found = collections.defaultdict(list)
    for item in Program(compiled(devices, batch, width, loss, layout).as_text()).collectives():
        found[item.kind] += [int(item.bytes)] * item.times
    return found


@pytest.mark.parametrize("loss", ("softmax", "sigmoid"))
def test_blocks_gather_both_embeddings_once_and_scatter_both_gradients(loss):
    batch, width, side = 32_768, 768, 16
    found = collectives(256, batch, width, loss)
    assert found.pop("all-gather") == [batch // side * width * 2] * 2
    assert found.pop("reduce-scatter") == [batch // 256 * width * 4] * 2
    # Four statistics of each of a block's rows and columns, the means of both embeddings, and a few scalars.
    statistics = 8 * 4 * batch // side if loss == "softmax" else 0
    assert sum(found.pop("all-reduce", [])) <= statistics + 2 * 4 * width + 1024
    assert not found


@pytest.mark.parametrize(("loss", "sweeps"), [("softmax", 2), ("sigmoid", 1)])
def test_a_ring_only_passes_on(loss, sweeps):
    devices, batch, width = 256, 1_048_576, 1024
    found = collectives(devices, batch, width, loss)
    # The means of both embeddings, and a few scalars.
    assert sum(found.pop("all-reduce", [])) <= 2 * 4 * width + 1024
    own = batch // devices
    # The texts on every round, their gradients in float32 on the last.
    expected = devices * own * width * (2 * sweeps + 4)
    statistics = devices * own * 4 * (7 if loss == "softmax" else 1)
    assert expected <= sum(found.pop("collective-permute")) <= expected + statistics + devices * 1024
    assert not found


def test_the_chosen_layouts_are_those_the_rule_names():
    assert choose_layout(32_768, 768, 2, 256) == Blocks(16, 16)
    assert choose_layout(1_048_576, 1024, 2, 256) == Ring(256)
    assert choose_layout(1_048_576, 768, 2, 8) == Ring(8)
    assert choose_layout(64, 128, 4, 1) == Blocks(1, 1)
