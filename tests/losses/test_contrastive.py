"""The contrastive loss compared with its definition in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.losses import sigmoid_contrastive, softmax_contrastive
from jaxclip.losses.layouts import Blocks, Ring
from jaxclip.losses.tiles import TileSize, tile_size

EPS = float(np.finfo(np.float32).eps)


def log_softmax(x, axis):
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def reference(images, texts, scale):
    """The loss, its gradients by the three arguments, and the accuracy; all by hand, all in float64."""
    images, texts, scale = (np.asarray(array, np.float64) for array in (images, texts, scale))
    cosines, n = images @ texts.T, len(images)
    by_image, by_text = log_softmax(scale * cosines, 1), log_softmax(scale * cosines, 0)
    loss = -(np.trace(by_image) + np.trace(by_text)) / (2 * n)
    by_logits = (np.exp(by_image) + np.exp(by_text) - 2 * np.eye(n)) / (2 * n)
    gradients = scale * by_logits @ texts, scale * by_logits.T @ images, np.sum(by_logits * cosines)
    own = np.diagonal(cosines)
    best = [(own >= cosines.max(axis)) / (cosines == cosines.max(axis, keepdims=True)).sum(axis) for axis in (1, 0)]
    accuracy = np.mean(best)
    return loss, gradients, accuracy


def unit(x):
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def pairs(kind: str, batch: int, width: int = 32):
    """Unit embeddings [batch, width] of images and of texts."""
    rng = np.random.default_rng(batch)
    images, texts = rng.standard_normal((2, batch, width))
    if kind == "alike":
        texts = images + 0.3 * texts
    elif kind == "duplicates":
        # Every caption occurs twice, like class names.
        texts[batch // 2 :] = texts[: batch - batch // 2]
    elif kind == "collapsed":
        images[:] = texts[:] = images[0]
    return unit(images), unit(texts)


contrast = jax.jit(softmax_contrastive)
loss_and_gradients = jax.jit(jax.value_and_grad(softmax_contrastive, argnums=(0, 1, 2), has_aux=True))

CASES = [(kind, batch, scale) for kind in ("random", "alike") for batch in (2, 8, 33) for scale in (1.0, 14.3, 100.0)]
CASES += [(kind, 8, scale) for kind in ("duplicates", "collapsed") for scale in (1.0, 14.3, 100.0)]


@pytest.mark.parametrize(("kind", "batch", "scale"), CASES)
def test_loss_and_gradients_equal_the_definition(kind, batch, scale):
    images, texts = pairs(kind, batch)
    (loss, _), gradients = loss_and_gradients(images, texts, jnp.float32(scale))
    expected_loss, expected_gradients, _ = reference(images, texts, scale)
    # A logit is a sum of products of unit rows times the scale: off by some eps * scale, and by as much a probability.
    tolerance = 4 * EPS * max(scale, math.log(batch))
    np.testing.assert_allclose(loss, expected_loss, rtol=0, atol=tolerance)
    for found, expected, size in zip(gradients, expected_gradients, (scale / batch, scale / batch, 1.0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size)


def test_one_pair_has_zero_loss():
    images, texts = pairs("random", 1)
    (loss, accuracy), gradients = loss_and_gradients(images, texts, jnp.float32(100))
    assert (float(loss), float(accuracy)) == (0.0, 1.0)
    assert not any(np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("batch", (16, 256))
def test_an_untrained_models_loss_is_about_the_logarithm_of_the_batch(batch):
    """Nearly orthogonal embeddings at the temperature training begins with."""
    loss, accuracy = contrast(*pairs("random", batch, width=2048), jnp.float32(1 / 0.07))
    # The logits have a variance of (14.3^2 / 2048) = 0.1, half of which the logarithm of the mean exponential adds.
    assert abs(float(loss) - math.log(batch)) < 0.2
    assert float(accuracy) < 0.3


def test_collapsed_embeddings_have_the_loss_log_batch_and_zero_gradient():
    images, texts = pairs("collapsed", 32)
    (loss, _), (by_image, by_text, by_scale) = loss_and_gradients(images, texts, jnp.float32(10))
    np.testing.assert_allclose(loss, math.log(32), rtol=1e-6)
    assert max(np.abs(by_image).max(), np.abs(by_text).max(), abs(float(by_scale))) < 1e-6


def test_perfectly_separated_pairs_have_zero_loss():
    (loss, accuracy), gradients = loss_and_gradients(jnp.eye(8), jnp.eye(8), jnp.float32(100))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert float(accuracy) == 1
    assert all(np.abs(gradient).max() < 1e-6 for gradient in gradients)


def test_the_order_of_the_pairs_does_not_matter():
    images, texts = pairs("alike", 33)
    order = np.random.default_rng(0).permutation(33)
    (loss, accuracy), (by_image, by_text, by_scale) = loss_and_gradients(images, texts, jnp.float32(14.3))
    (other, same), (image, text, scale) = loss_and_gradients(images[order], texts[order], jnp.float32(14.3))
    # Sums of other orders: off by some eps times the logits, or times the sum that a logarithm is taken of.
    np.testing.assert_allclose(other, loss, rtol=0, atol=4 * EPS * 14.3)
    np.testing.assert_allclose(scale, by_scale, rtol=0, atol=4 * EPS)
    np.testing.assert_allclose(image, by_image[order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(text, by_text[order], rtol=0, atol=1e-6)
    assert float(same) == float(accuracy)


def test_images_and_texts_can_change_places():
    images, texts = pairs("alike", 8)
    there, back = (contrast(*both, jnp.float32(14.3)) for both in ((images, texts), (texts, images)))
    np.testing.assert_allclose(there, back, rtol=1e-6)


def test_pairing_each_image_with_another_text_costs_more():
    images, texts = pairs("alike", 8)
    right, _ = contrast(images, texts, jnp.float32(14.3))
    wrong, accuracy = contrast(images, np.roll(texts, 1, axis=0), jnp.float32(14.3))
    assert float(wrong) > float(right) + 1 and float(accuracy) == 0


def one_hot(*places: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[list(places)]


@pytest.mark.parametrize(
    ("images", "texts", "expected"),
    [
        ((0, 1, 2, 3), (0, 1, 2, 3), 1.0),
        ((0, 1, 2, 3), (1, 0, 2, 3), 0.5),
        ((0, 1, 2, 3), (1, 2, 3, 0), 0.0),
        # The same caption on two images: either may be the other's.
        ((0, 0, 2, 3), (0, 0, 2, 3), 0.75),
        # A collapsed model gets chance, and not everything.
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.25),
    ],
)
def test_accuracy_is_the_share_whose_own_partner_is_most_similar(images, texts, expected):
    _, accuracy = contrast(one_hot(*images), one_hot(*texts), jnp.float32(10))
    assert float(accuracy) == expected


def test_accuracy_counts_both_directions():
    """Only text 0 goes wrong: it is nearer to image 1, and that to text 1."""
    images, texts = (
        np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        for angles in (np.radians([40, -35]), np.radians([0, -60]))
    )
    _, accuracy = contrast(images, texts, jnp.float32(10))
    assert float(accuracy) == reference(images, texts, 10.0)[2] == 0.75


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_logits_and_loss_are_float32_and_the_product_is_not_rounded(dtype):
    """What a TPU or a GPU would do to a float32 product that does not ask for its precision."""
    embeddings = jax.ShapeDtypeStruct((8, 4), dtype)
    jaxpr = jax.make_jaxpr(softmax_contrastive)(embeddings, embeddings, jax.ShapeDtypeStruct((), jnp.float32))
    [product] = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name == "dot_general"]
    assert product.outvars[0].aval.dtype == jnp.float32
    assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
    assert [aval.dtype for aval in jaxpr.out_avals] == [jnp.float32] * 2


def test_a_fixed_temperature_may_be_a_plain_number():
    images, texts = pairs("alike", 8)
    assert float(contrast(images, texts, 14.0)[0]) == float(contrast(images, texts, jnp.float32(14.0))[0])


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


@pytest.mark.parametrize(
    "loss", (softmax_contrastive, lambda *given, mesh: sigmoid_contrastive(*given, -10.0, mesh=mesh))
)
def test_a_batch_that_does_not_divide_among_the_devices_is_an_error(loss):
    images, texts = map(jnp.asarray, pairs("alike", 33))
    with pytest.raises(ValueError, match="a batch of 33 does not divide among 8 devices"):
        loss(images, texts, 14.0, mesh=mesh_of(8))


def cone(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings all about one direction, as those of fresh towers are."""
    rng = np.random.default_rng(0)
    return tuple(unit(rng.standard_normal(32) + noise * rng.standard_normal((64, 32)) * 32**0.5) for _ in range(2))


@pytest.mark.parametrize("devices", (1, 8))
@pytest.mark.parametrize(
    "embeddings", (pairs("alike", 64), cone(0.3), cone(0.05)), ids=("alike", "cone", "narrow cone")
)
def test_bfloat16_embeddings_give_bfloat16_gradients_near_the_exact_ones(embeddings, devices):
    images, texts = (jnp.asarray(x, jnp.bfloat16) for x in embeddings)
    mesh = mesh_of(devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    images, texts = jax.device_put((images, texts), rows)
    function = jax.value_and_grad(lambda *given: softmax_contrastive(*given, mesh=mesh)[0], argnums=(0, 1, 2))
    loss, gradients = jax.jit(function)(images, texts, jnp.float32(14.3))
    expected_loss, expected, _ = reference(images, texts, 14.3)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(loss, expected_loss, rtol=0, atol=4 * EPS * 14.3)
    for found, right in zip(gradients, expected, strict=True):
        # Rounded by at most 2^-9 at the end, and each term of the product before that; terms of both signs.
        np.testing.assert_allclose(np.asarray(found, float), right, rtol=0, atol=2**-7 * np.abs(right).max())


def test_nan_propagates():
    images, texts = pairs("random", 8)
    images[0, 0] = np.nan
    loss, _ = contrast(images, texts, jnp.float32(10))
    assert np.isnan(float(loss))


def test_a_mesh_of_explicit_axes_is_an_error():
    images, texts = map(jnp.asarray, pairs("alike", 8))
    with pytest.raises(ValueError, match="typed Auto"):
        softmax_contrastive(images, texts, 14.0, mesh=jax.make_mesh((8,), ("data",)))


def test_tiles_are_one_for_small_blocks_and_a_small_part_of_large_ones():
    assert tile_size(1024, 1024, 512, 4) == TileSize(1024, 1024)
    for rows, columns, width in ((2048, 2048, 768), (4096, 4096, 1024), (131_072, 131_072, 768), (3, 5_000_000, 64)):
        tile = tile_size(rows, columns, width, 2)
        logits = tile.rows * tile.columns
        assert logits <= rows * columns / 8 and 4 * logits <= 64 * 2**20
        assert logits >= min(2**20, rows * columns / 8) * 0.9


@pytest.mark.parametrize(("loss", "products"), [(softmax_contrastive, 4), (sigmoid_contrastive, 3)])
@pytest.mark.parametrize("layout", (Blocks(1, 1, TileSize(8, 8)), Ring(1, TileSize(8, 8))), ids=("blocks", "ring"))
def test_a_tile_takes_as_few_products_as_can_be(layout, loss, products):
    """Each is of 2 rows x columns x width operations: 8 B^2 D in two sweeps of the softmax, 6 B^2 D in one."""
    images, texts = map(jnp.asarray, pairs("alike", 32))
    scalars = (jnp.float32(14.0), jnp.float32(-10.0))[: 1 if loss is softmax_contrastive else 2]

    def value(*given):
        return jax.tree.leaves(loss(*given, layout=layout))[0]

    jaxpr = jax.make_jaxpr(jax.value_and_grad(value, argnums=(0, 1)))(images, texts, *scalars)
    shapes = [
        (*equation.invars[0].aval.shape, equation.outvars[0].aval.shape[1])
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    assert [sorted(shape) for shape in shapes] == [[8, 8, 32]] * products
