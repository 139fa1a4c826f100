"""Floating-point operations of a training step, whatever a compiler makes of them."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.methods import Method
from jaxclip.step import Step


def model_flops(method: Method, step: Step, batch: Any) -> float:
    """The matrix products and convolutions of the loss and its gradient over the whole batch.

    They are those that the step's own loss asks for: a frozen tower has no backward pass, a momentum copy has a forward
    pass only, and every further stage counts. Recomputation counts as nothing, as does everything that is no matrix
    product (the convention of PaLM, Chowdhery et al. 2022, appendix B).

    Args:
      method: the run's, with towers that recompute nothing.
      step: of the run.
      batch: shapes of the global batch.
    """
    # On one device and in one part: shards and micro-batches divide the work, and recompute some.
    device = step.mesh.devices.flat[0]
    mesh = sharding.create(MeshConfig(), [device])
    # In a kernel, products are not seen.
    alone = Step(method, step.optimizer, mesh, precision=str(step.dtype), groups=step.groups, attention="plain")
    state = alone.abstract_state

    def loss(params: Any, stats: Any, memory: Any, batch: Any) -> Any:
        return alone.loss(params, stats, memory, batch, jax.random.key(0), jax.numpy.zeros((), jax.numpy.int32))

    gradient = jax.value_and_grad(loss, has_aux=True)
    jaxpr = jax.make_jaxpr(gradient)(state.params, state.stats, state.memory, batch)
    return _products(jaxpr.jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += turns * sum(_products(inner) for inner in jaxprs_in_params(equation.params))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            # The gradient of a strided convolution is one of an image with zeros between the pixels.
            zeros = math.prod(equation.params["lhs_dilation"])
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features / zeros
    return total
