"""The noise-contrastive loss of one positive and many negatives (PIRL, Misra and van der Maaten 2020, section 2.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxclip.losses.queued import log_sum_exp

_NEVER = -1e30


def noise_contrastive(
    positive: Float[Array, "batch"],
    negatives: Float[Array, "batch count"],
    excluded: Bool[Array, "batch count"] | None = None,
) -> Float[Array, "batch"]:
    """-log h(positive) - sum over negatives of log(1 - h(negative)), with h(s) = e^s / (e^s + Z) (equations 3 and 4).

    Z is the sum of e^s over the negatives. If all logits are equal, the positive's part is ln(count + 1) nats, as with
    a softmax, and that of the negatives count ln(1 + 1 / count), almost 1.

    Args:
      positive: logit of each row's positive: cosine / temperature.
      negatives: logits of its negatives.
      excluded: those that do not count, because they are the row's own record.

    >>> noise_contrastive(jnp.zeros(1), jnp.zeros((1, 3))).round(4).tolist()  # ln 4 + 3 ln 4/3
    [2.249300003051758]
    """
    if excluded is not None:
        negatives = jnp.where(excluded, _NEVER, negatives)
    total = log_sum_exp([negatives])
    return jax.nn.softplus(total - positive) + jnp.sum(jax.nn.softplus(negatives - total[:, None]), axis=1)
