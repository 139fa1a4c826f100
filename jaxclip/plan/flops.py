"""Count of a model's floating-point operations, independent of the compiled program."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from jaxclip.step import Step


def model_flops(step: Step, batch: Any) -> float:
    """The operations of one training step over the whole batch: three times the towers' forward matrix products.

    The backward pass counts as twice the forward pass. Recomputation, and all that is not a matrix product, is not
    counted (the convention of PaLM, Chowdhery et al. 2022, appendix B). The loss's own products are below 1 % up to a
    batch of 256k.

    Args:
      step: of the method.
      batch: shapes of the global batch.
    """

    def embed(variables: Any, batch: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), len(next(iter(batch.values()))))
        return step.method.embed(step.model(variables), batch, keys=keys, dtype=step.dtype, constrain=lambda x: x)

    jaxpr = jax.make_jaxpr(embed)(step.abstract_state.variables, batch)
    return 3.0 * _products(jaxpr.jaxpr)


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
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    return total
