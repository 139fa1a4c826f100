"""Both contrastive losses compared with a float64 reference, for many draws, meshes, layouts, tiles and precisions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import loss_reference
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.losses import sigmoid_contrastive, softmax_contrastive
from jaxclip.losses.layouts import Blocks, Layout, Ring
from jaxclip.losses.tiles import TileSize

# Of the loss against max(loss, 1), of a gradient against max(its largest entry, scale / batch).
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
DRAWS = 10


@dataclasses.dataclass(frozen=True)
class Shape:
    """The arguments of one compilation: sizes, layout of the devices, and loss."""

    batch: int
    width: int
    mesh: tuple[int, ...]
    layout: Layout | None
    loss: str = "softmax"
    dtype: str = "float32"

    def __str__(self) -> str:
        kind = "chosen" if self.layout is None else str(self.layout).replace(" ", "")
        return f"{self.loss}-{self.dtype}-{self.batch}x{self.width}-on-{'x'.join(map(str, self.mesh))}-{kind}"


def tiles(rows: int, columns: int) -> TileSize:
    return TileSize(rows, columns)


# (batch, mesh, layout): 1 to 8 devices, each mesh shape, tiles that divide a side and tiles that do not.
PLACES = [
    (1, (1,), None),
    (33, (1,), None),
    (33, (1,), Blocks(1, 1, tiles(8, 5))),
    (33, (1,), Ring(1, tiles(7, 33))),
    (2, (2,), None),
    (24, (2,), Blocks(1, 2, tiles(5, 7))),
    (24, (2, 1), Ring(2)),
    (27, (3,), Blocks(3, 1, tiles(4, 4))),
    (27, (3,), Ring(3, tiles(9, 2))),
    (24, (2, 2), Blocks(2, 2)),
    (24, (4,), Ring(4, tiles(1, 1))),
    (30, (3, 2), Blocks(2, 3, tiles(4, 7))),
    (30, (6,), Ring(6, tiles(2, 3))),
    (40, (8,), None),
    (40, (4, 2), Blocks(4, 2, tiles(3, 20))),
    (40, (2, 4), Blocks(1, 8, tiles(64, 3))),
    (40, (2, 2, 2), Blocks(8, 1)),
    (40, (2, 4), Ring(8, tiles(3, 2))),
]
KINDS = [("softmax", dtype) for dtype in ("float32", "float64")] + [("sigmoid", "float32")]
SHAPES = [Shape(batch, 16, mesh, layout, loss, dtype) for batch, mesh, layout in PLACES for loss, dtype in KINDS]
SHAPES += [Shape(40, 16, (8,), layout, "sigmoid", "float64") for layout in (Blocks(4, 2, tiles(3, 5)), Ring(8))]
SHAPES += [
    Shape(40, 16, (4, 2), Blocks(4, 2, tiles(3, 7)), "softmax to ids", "float32"),
    Shape(40, 16, (4, 2), Ring(8, tiles(2, 3)), "softmax to ids", "float32"),
    Shape(40, 16, (8,), Blocks(4, 2, tiles(3, 7)), "softmax to ids", "float64"),
    Shape(40, 16, (8,), Ring(8, tiles(2, 3)), "softmax to ids", "float64"),
]


def test_there_are_as_many_draws_and_as_few_programs_as_promised():
    assert len(SHAPES) <= 60 and len(SHAPES) * DRAWS >= 500


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draw(shape: Shape, number: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Embeddings and a scale: of models untrained and trained, and of the ways in which they go wrong."""
    rng = np.random.default_rng([number, shape.batch])
    images, texts = (unit(x) for x in rng.standard_normal((2, shape.batch, shape.width)))
    scale = (1.0, 100.0, 14.3, float(np.exp(rng.uniform(0, np.log(100)))))[number % 4]
    match number % 5:
        case 1:
            texts = unit(images + 0.2 * texts)
        case 2:  # Captions that occur many times, like class names.
            texts = texts[rng.integers(0, max(1, shape.batch // 4), shape.batch)]
        case 3:  # All logits are equal, and 0.
            images[:, shape.width // 2 :] = 0
            texts[:, : shape.width // 2] = 0
            images, texts = unit(images), unit(texts)
        case 4:  # Everything is embedded in one point, or two.
            images[:], texts[:] = images[0], images[0]
            texts[: shape.batch // 2] *= rng.choice([-1, 1])
    dtype = np.dtype(shape.dtype)
    # What the loss is given is exactly what the reference is given.
    return images.astype(dtype), texts.astype(dtype), float(dtype.type(scale))


def program(shape: Shape):
    """The loss and its gradients on the shape's devices, compiled once for all draws."""
    mesh = None
    if np.prod(shape.mesh) > 1:
        devices = np.array(jax.devices()[: np.prod(shape.mesh)]).reshape(shape.mesh)
        mesh = Mesh(devices, tuple("abc")[: len(shape.mesh)])
    where = {"mesh": mesh, "layout": shape.layout}

    def loss(images, texts, scale, more):
        if shape.loss == "sigmoid":
            return sigmoid_contrastive(images, texts, scale, **more, **where)
        return softmax_contrastive(images, texts, scale, **image_weight(shape), **more, **where)[0]

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3) if shape.loss == "sigmoid" else (0, 1, 2)))
    alone = jax.jit(loss)
    rows = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def run(images, texts, scale, more):
        images, texts = jax.device_put((images, texts), rows)
        arguments = images, texts, jnp.asarray(scale, shape.dtype), more
        return both(*arguments), alone(*arguments)

    return run


def image_weight(shape: Shape) -> dict[str, float]:
    """ConVIRT's lambda in some of the shapes, the loss's own default in the others."""
    return {"image_weight": 0.75} if shape.loss.startswith("softmax to") else {}


def draw_more(shape: Shape, number: int) -> tuple[dict, dict]:
    """Further arguments of the loss, and the same ones for the reference."""
    rng = np.random.default_rng(number)
    tested, exact = {}, image_weight(shape)
    if shape.loss == "sigmoid":
        bias = np.dtype(shape.dtype).type(rng.choice([-10, 0, rng.uniform(-20, 5)]))
        return {"logit_bias": jnp.asarray(bias)}, {"bias": float(bias)}
    if "ids" in shape.loss:
        # Every fifth time all pairs are partners.
        exact["ids"] = rng.integers(0, shape.batch // 2 if number % 5 else 1, shape.batch)
        tested["ids"] = jnp.asarray(exact["ids"])
    return tested, exact


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_equal_the_reference(shape):
    reference = loss_reference.sigmoid if shape.loss == "sigmoid" else loss_reference.softmax
    with jax.enable_x64(shape.dtype == "float64"):
        run = program(shape)
        for number in range(DRAWS):
            images, texts, scale = draw(shape, number)
            more, exact = draw_more(shape, number)
            (loss, gradients), alone = run(images, texts, scale, more)
            expected = reference(images, texts, scale, **exact)
            check(shape, number, scale, float(loss), jax.tree.leaves(gradients), expected)
            assert abs(float(alone) - float(loss)) <= TOLERANCE[shape.dtype] * max(1, expected.loss)


def check(shape, number, scale, loss, gradients, expected) -> None:
    tolerance = TOLERANCE[shape.dtype]
    assert abs(loss - expected.loss) <= tolerance * max(1, expected.loss), number
    for place, (found, right) in enumerate(zip(gradients, expected.gradients, strict=True)):
        assert found.dtype == shape.dtype
        error = np.abs(np.asarray(found, np.float64) - right).max()
        assert error <= tolerance * max(np.abs(right).max(), scale / shape.batch), (number, place)
