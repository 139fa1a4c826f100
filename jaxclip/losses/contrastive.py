"""The contrastive losses over the global batch, exact on any mesh, without the similarity matrix in memory.

Both are one `jax.custom_vjp` around a sweep over tiles of the matrix (`tiles.py`) that lies on the devices as a layout
says (`layouts.py`). The derivative is computed together with the loss, while the tiles are at hand. Statistics,
logits and gradients accumulate in float32, whatever the embeddings' dtype (in float64 for float64 ones).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxclip.losses.layouts import ACROSS, DOWN, Layout, choose_layout, grid_mesh
from jaxclip.losses.on_device import accumulator, sigmoid_on_device, softmax_on_device


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["image_embeddings", "text_embeddings", "logit_scale", "weight"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Teacher:
    """Another model's embeddings of the same batch, whose softmax over it is the target (ALBEF, section 3.2).

    Attributes:
      image_embeddings: [batch, teacher_width], unit length.
      text_embeddings: [batch, teacher_width], unit length.
      logit_scale: what their cosines are multiplied by.
      weight: the share of the target that is the teacher's (ALBEF's alpha); the rest is the pairs' own.
    """

    image_embeddings: Float[Array, "batch teacher_width"]
    text_embeddings: Float[Array, "batch teacher_width"]
    logit_scale: Float[Array, ""]
    weight: Float[Array, ""]


def softmax_contrastive(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch width"],
    logit_scale: Float[Array, ""] | float,
    *,
    mesh: Mesh | None = None,
    image_weight: float = 0.5,
    ids: Int[Array, "batch"] | None = None,
    teacher: Teacher | None = None,
    layout: Layout | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The symmetric softmax loss (CLIP, Radford et al. 2021, figure 3; ConVIRT, Zhang et al. 2020, equation 4).

    Every picture is classified among all texts of the global batch and every text among all its pictures; row i of
    one belongs to row i of the other.

    Args:
      image_embeddings: [batch, width], unit length, over all devices of `mesh` in their order.
      text_embeddings: [batch, width], likewise.
      logit_scale: what cosines are multiplied by (the inverse temperature).
      mesh: the devices that the batch is divided among; None for one device.
      image_weight: of classifying pictures among texts (ConVIRT's lambda); the rest is the other direction's.
      ids: pairs with the same id are all each other's partners, with equal shares of the target.
      teacher: softens the target; no gradient flows to it.
      layout: how to compute it, which the result does not depend on; None chooses by `choose_layout`.

    Returns:
      The loss in nats; and the share of pictures and texts whose most similar one in the batch is their partner, ties
      with k others counting 1 / (1 + k). The second has no gradient.

    Raises:
      ValueError: the batch does not divide among the devices, rows are missing, or the mesh's axes are not typed Auto.
    """
    scale = jnp.asarray(logit_scale, accumulator(image_embeddings))
    pairs = {} if ids is None else {"ids": ids}
    scalars: dict[str, jax.Array] = {}
    if teacher is not None:
        pairs |= {"teacher_image": teacher.image_embeddings, "teacher_text": teacher.text_embeddings}
        scalars |= {"teacher_scale": jnp.asarray(teacher.logit_scale), "teacher_weight": jnp.asarray(teacher.weight)}
    place = _Place.of({"image": image_embeddings, "text": text_embeddings} | pairs, mesh, layout)
    return _softmax(place, image_weight, image_embeddings, text_embeddings, scale, pairs, scalars)


def sigmoid_contrastive(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch width"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
    *,
    mesh: Mesh | None = None,
    layout: Layout | None = None,
) -> Float[Array, ""]:
    """The sigmoid loss (SigLIP, Zhai et al. 2023, algorithm 1): of all batch x batch pairs, which belong together?

    Args:
      image_embeddings: [batch, width], unit length, over all devices of `mesh` in their order.
      text_embeddings: [batch, width], likewise.
      logit_scale: what cosines are multiplied by.
      logit_bias: what is added to the products; near -10 at the start, as most pairs do not belong together.
      mesh: the devices that the batch is divided among; None for one device.
      layout: how to compute it, which the result does not depend on; None chooses by `choose_layout`.

    Returns:
      The sum over all pairs divided by the batch size, in nats.

    Raises:
      ValueError: the batch does not divide among the devices, rows are missing, or the mesh's axes are not typed Auto.
    """
    place = _Place.of({"image": image_embeddings, "text": text_embeddings}, mesh, layout)
    scale, bias = (jnp.asarray(x, accumulator(image_embeddings)) for x in (logit_scale, logit_bias))
    return _sigmoid(place, image_embeddings, text_embeddings, scale, bias)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a loss is computed."""

    mesh: Mesh | None
    layout: Layout

    @classmethod
    def of(cls, pairs: dict[str, jax.Array], mesh: Mesh | None, layout: Layout | None) -> _Place:
        devices = 1 if mesh is None else mesh.size
        batch, width = pairs["image"].shape
        for name, rows in pairs.items():
            if len(rows) != batch:
                raise ValueError(f"{len(rows)} rows of {name} for {batch} pictures")
        if mesh is not None and mesh.are_all_axes_explicit:
            raise ValueError("the mesh's axes must be typed Auto: jax.make_mesh(..., axis_types=(AxisType.Auto, ...))")
        if batch % devices:
            raise ValueError(f"a batch of {batch} does not divide among {devices} devices")
        teacher = pairs.get("teacher_image")
        more = 0 if teacher is None else teacher.shape[1] * teacher.dtype.itemsize
        layout = layout or choose_layout(batch, width, pairs["image"].dtype.itemsize, devices, more)
        if math.prod(layout.grid) != devices:
            raise ValueError(f"{layout} is not for {devices} devices")
        return cls(mesh, layout)

    def run(self, function: Callable[..., Any], pairs: Any, scalars: Any) -> tuple[Any, Any]:
        """Calls function(layout, pairs, scalars) on every device with its own rows of `pairs`.

        It returns scalars, equal on all devices, and arrays of the device's own rows.
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
            # Nothing inside is differentiated, so which values are equal on which devices need not be tracked.
            check_vma=False,
        )(pairs, scalars)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax(place, image_weight, image, text, scale, pairs, scalars):
    function = functools.partial(softmax_on_device, image_weight, False)
    (loss, accuracy, _), _ = place.run(function, {"image": image, "text": text} | pairs, {"scale": scale} | scalars)
    return loss, accuracy


def _softmax_forward(place, image_weight, image, text, scale, pairs, scalars):
    function = functools.partial(softmax_on_device, image_weight, True)
    (loss, accuracy, by_scale), by_embeddings = place.run(
        function, {"image": image, "text": text} | pairs, {"scale": scale} | scalars
    )
    return (loss, accuracy), (*by_embeddings, by_scale)


def _softmax_backward(place, image_weight, gradients, cotangents):
    return *_scaled(gradients, cotangents[0]), None, None


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
