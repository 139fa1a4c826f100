"""Contrastive losses over the global batch, exact on any mesh, without the similarity matrix in memory.

Each loss is a `jax.custom_vjp` around a sweep over tiles of the matrix (`tiles.py`), which a layout distributes over
the devices (`layouts.py`). The gradient is computed together with the loss, while the tiles are available. Statistics,
logits and gradients accumulate in float32, whatever the embeddings' dtype (in float64 for float64 ones).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxclip.losses.layouts import ACROSS, DOWN, Layout, choose_layout, grid_mesh
from jaxclip.losses.on_device import accumulator, sigmoid_on_device, softmax_on_device


def softmax_contrastive(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch width"],
    logit_scale: Float[Array, ""] | float,
    *,
    mesh: Mesh | None = None,
    image_weight: float = 0.5,
    ids: Int[Array, "batch"] | None = None,
    layout: Layout | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The symmetric softmax loss (CLIP, Radford et al. 2021, figure 3; ConVIRT, Zhang et al. 2020, equation 4).

    Each image is classified among all texts of the global batch, and each text among all images. Row i of the images
    and row i of the texts are partners.

    Args:
      image_embeddings: [batch, width], unit length, sharded over all devices of `mesh` in order.
      text_embeddings: [batch, width], likewise.
      logit_scale: the factor for cosines (the inverse temperature).
      mesh: the devices among which the batch is divided; None for one device.
      image_weight: the weight of classifying images among texts (ConVIRT's lambda); the other direction has the rest.
      ids: pairs with equal ids are all partners of each other, with equal shares of the target.
      layout: the distribution of the computation, which does not affect the result; None for `choose_layout`.

    Returns:
      The loss in nats, and the accuracy: the fraction of images and texts whose most similar counterpart in the batch
      is a partner. A tie with k others counts 1 / (1 + k). The accuracy has no gradient.

    Raises:
      ValueError: the batch does not divide among the devices, an array has too few rows, or the mesh's axes are not
        typed Auto.

    Example:
      Image 0 matches its text. Image 1 is most similar to text 0.

      >>> import jax.numpy as jnp
      >>> from jaxclip.losses import softmax_contrastive
      >>> images = jnp.array([[1.0, 0.0], [0.8, 0.6]])
      >>> texts = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> loss, accuracy = softmax_contrastive(images, texts, 10.0)
      >>> f"{loss:.3f} {accuracy:.2f}"
      '0.564 0.75'
    """
    scale = jnp.asarray(logit_scale, accumulator(image_embeddings))
    rows = {} if ids is None else {"ids": ids}
    place = _Place.of(image_embeddings, text_embeddings, rows, mesh=mesh, layout=layout)
    return _softmax(place, image_weight, image_embeddings, text_embeddings, scale, rows)


def nt_xent(
    first_embeddings: Float[Array, "batch width"],
    second_embeddings: Float[Array, "batch width"],
    logit_scale: Float[Array, ""] | float,
    *,
    mesh: Mesh | None = None,
    layout: Layout | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of two views of each image (SimCLR, Chen et al. 2020, equation 1 and algorithm 1).

    Each of the 2 * batch embeddings is classified among the 2 * batch - 1 others of the global batch; its partner is
    the other view of the same image.

    Args:
      first_embeddings: [batch, width], unit length, sharded over all devices of `mesh` in order.
      second_embeddings: [batch, width], likewise.
      logit_scale: the factor for cosines (the inverse temperature).
      mesh: the devices among which the batch is divided; None for one device.
      layout: the distribution of the computation, which does not affect the result; None for `choose_layout`.

    Returns:
      The mean loss in nats, and the accuracy as in `softmax_contrastive`.

    Raises:
      ValueError: as for `softmax_contrastive`.

    Example:
      Both views of each image are equal, so each embedding has its partner and two others at a right angle.

      >>> import jax.numpy as jnp
      >>> from jaxclip.losses import nt_xent
      >>> views = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> loss, accuracy = nt_xent(views, views, 1.0)
      >>> f"{loss:.3f} {accuracy:.2f}"
      '0.551 1.00'
    """

    def alternating(even: jax.Array, odd: jax.Array) -> jax.Array:
        # Views of an image are neighbors, so no row leaves its device.
        return jnp.stack([even, odd], axis=1).reshape(-1, even.shape[1])

    rows = alternating(first_embeddings, second_embeddings)
    columns = alternating(second_embeddings, first_embeddings)
    number = jnp.arange(len(rows))
    # Column j holds the partner of row j, so row i is compared with itself in the column of its partner.
    records = {"image_record": number, "text_record": number ^ 1}
    scale = jnp.asarray(logit_scale, accumulator(rows))
    return _softmax(_Place.of(rows, columns, records, mesh=mesh, layout=layout), 0.5, rows, columns, scale, records)


def sigmoid_contrastive(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch width"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
    *,
    mesh: Mesh | None = None,
    layout: Layout | None = None,
) -> Float[Array, ""]:
    """The sigmoid loss (SigLIP, Zhai et al. 2023, algorithm 1).

    Each of the batch x batch pairs of an image and a text is classified as matching (row i with row i) or not.

    Args:
      image_embeddings: [batch, width], unit length, sharded over all devices of `mesh` in order.
      text_embeddings: [batch, width], likewise.
      logit_scale: the factor for cosines.
      logit_bias: added to the scaled cosines; initially about -10, because most pairs do not match.
      mesh: the devices among which the batch is divided; None for one device.
      layout: the distribution of the computation, which does not affect the result; None for `choose_layout`.

    Returns:
      The sum over all pairs divided by the batch size, in nats.

    Raises:
      ValueError: the batch does not divide among the devices, an array has too few rows, or the mesh's axes are not
        typed Auto.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxclip.losses import sigmoid_contrastive
      >>> images = texts = jnp.eye(2)
      >>> loss = sigmoid_contrastive(images, texts, 10.0, -5.0)
      >>> f"{loss:.4f}"  # two matching pairs with logit 5 and two others with logit -5: 4 log(1 + exp(-5)) / 2
      '0.0134'
    """
    place = _Place.of(image_embeddings, text_embeddings, {}, mesh=mesh, layout=layout)
    scale, bias = (jnp.asarray(x, accumulator(image_embeddings)) for x in (logit_scale, logit_bias))
    return _sigmoid(place, image_embeddings, text_embeddings, scale, bias)


@dataclasses.dataclass(frozen=True)
class _Place:
    """The devices of a loss and the layout of its computation."""

    mesh: Mesh | None
    layout: Layout

    @classmethod
    def of(
        cls,
        image: jax.Array,
        text: jax.Array,
        others: Mapping[str, jax.Array],
        *,
        mesh: Mesh | None,
        layout: Layout | None,
    ) -> _Place:
        devices = 1 if mesh is None else mesh.size
        batch, width = image.shape
        for name, rows in {"text": text, **others}.items():
            if len(rows) != batch:
                raise ValueError(f"{len(rows)} rows of {name} for {batch} images")
        if mesh is not None and mesh.are_all_axes_explicit:
            raise ValueError("the mesh's axes must be typed Auto: jax.make_mesh(..., axis_types=(AxisType.Auto, ...))")
        if batch % devices:
            raise ValueError(f"a batch of {batch} does not divide among {devices} devices")
        layout = layout or choose_layout(batch, width, image.dtype.itemsize, devices)
        if math.prod(layout.grid) != devices:
            raise ValueError(f"{layout} is not for {devices} devices")
        return cls(mesh, layout)

    def run(self, function: Callable[..., Any], pairs: Any, scalars: Any) -> tuple[Any, Any]:
        """Calls function(layout, pairs, scalars) on every device with its own rows of `pairs`.

        The function returns scalars that are equal on all devices, and arrays with the device's own rows.
        """
        function = functools.partial(function, self.layout)
        if self.mesh is None or self.mesh.size == 1:
            return function(pairs, scalars)
        rows = PartitionSpec((DOWN, ACROSS))
        return jax.shard_map(
            function,
            mesh=grid_mesh(self.mesh, self.layout),
            in_specs=(rows, PartitionSpec()),
            out_specs=(PartitionSpec(), rows),
            # The function is not differentiated, so JAX need not track which values are equal on all devices.
            check_vma=False,
        )(pairs, scalars)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax(place, image_weight, image, text, scale, rows):
    function = functools.partial(softmax_on_device, image_weight, False)
    (loss, accuracy, _), _ = place.run(function, {"image": image, "text": text} | rows, {"scale": scale})
    return loss, accuracy


def _softmax_forward(place, image_weight, image, text, scale, rows):
    function = functools.partial(softmax_on_device, image_weight, True)
    (loss, accuracy, by_scale), by_embeddings = place.run(
        function, {"image": image, "text": text} | rows, {"scale": scale}
    )
    return (loss, accuracy), (*by_embeddings, by_scale)


def _softmax_backward(place, image_weight, gradients, cotangents):
    return *_scaled(gradients, cotangents[0]), None


_softmax.defvjp(_softmax_forward, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid(place, image, text, scale, bias):
    function = functools.partial(sigmoid_on_device, False)
    return place.run(function, {"image": image, "text": text}, {"scale": scale, "bias": bias})[0][0]


def _sigmoid_forward(place, image, text, scale, bias):
    function = functools.partial(sigmoid_on_device, True)
    (loss, *by_scalars), by_embeddings = place.run(
        function, {"image": image, "text": text}, {"scale": scale, "bias": bias}
    )
    return loss, (*by_embeddings, *by_scalars)


def _sigmoid_backward(place, gradients, cotangent):
    return _scaled(gradients, cotangent)


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


def _scaled(gradients: tuple[jax.Array, ...], by: jax.Array) -> tuple[jax.Array, ...]:
    return tuple((gradient * by).astype(gradient.dtype) for gradient in gradients)
