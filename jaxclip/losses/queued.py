"""Softmax cross-entropy of queries against the keys of the batch and of a queue.

MoCo (He et al. 2020, equation 1) and ALBEF (Li et al. 2021, equations 2 and 6). The logits are in parts, one per source
of keys, that are never concatenated: each part stays on the devices that hold its keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxclip import sharding


def queued_contrastive(
    queries: Float[Array, "batch width"],
    keys: Float[Array, "batch width"],
    queue: Float[Array, "size width"],
    scale: Float[Array, ""] | float,
    targets: tuple[Float[Array, "batch batch"], Float[Array, "batch size"]] | None = None,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "batch batch"], Float[Array, "batch size"]]]:
    """The loss of telling each query's own key from those of the other records and of the queue.

    Args:
      queries: of the model that is trained.
      keys: of the same records in the same order, of the other modality or of a momentum copy.
      queue: keys of earlier batches.
      scale: of the cosines, 1 / temperature.
      targets: probabilities of the keys of the batch and of the queue for each query; None for 1 for its own key.
      mesh: the devices, over which rows of `keys` and of `queue` lie; None for one device.

    Returns:
      The mean over queries in nats, and the logits against the batch and against the queue.

    >>> loss, (batch, queue) = queued_contrastive(jnp.eye(2, 4), jnp.eye(2, 4), jnp.zeros((3, 4)), 10.0)
    >>> batch.shape, queue.shape, loss < 0.001
    ((2, 2), (2, 3), Array(True, dtype=bool))
    """
    logits = (similarities(queries, keys, mesh) * scale, similarities(queries, queue, mesh) * scale)
    wanted = (jnp.eye(len(queries), dtype=jnp.float32), None) if targets is None else targets
    return jnp.mean(cross_entropy(logits, wanted)), logits


def similarities(
    queries: Float[Array, "batch width"], keys: Float[Array, "keys width"], mesh: Mesh | None = None
) -> Float[Array, "batch keys"]:
    """Dot products in float32. Each device has all queries and its own keys, so that keys are never moved.

    >>> similarities(jnp.eye(2), jnp.array([[1.0, 2.0]])).tolist()
    [[1.0], [2.0]]
    """
    if mesh is None:
        return queries.astype(jnp.float32) @ keys.astype(jnp.float32).T
    queries = jax.lax.with_sharding_constraint(queries, NamedSharding(mesh, PartitionSpec()))
    found = queries.astype(jnp.float32) @ keys.astype(jnp.float32).T
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH)))


def cross_entropy(
    logits: Sequence[Float[Array, "batch _"]], targets: Sequence[Float[Array, "batch _"] | None]
) -> Float[Array, "batch"]:
    """The cross-entropy of each row with a softmax over the columns of all parts.

    Args:
      logits: parts of the columns.
      targets: probabilities of the same columns; None for a part of which none is a target. Their sum over all columns
        is 1.

    >>> cross_entropy([jnp.zeros((2, 1)), jnp.zeros((2, 3))], [jnp.ones((2, 1)), None]).round(4).tolist()
    [1.386299967765808, 1.386299967765808]
    """
    normalizer = log_sum_exp(logits)
    pairs = zip(logits, targets, strict=True)
    return normalizer - sum(jnp.sum(part * wanted, axis=1) for part, wanted in pairs if wanted is not None)


def softmax(logits: Sequence[Float[Array, "batch _"]]) -> tuple[Float[Array, "batch _"], ...]:
    """The softmax over the columns of all parts, for soft targets from a momentum copy.

    >>> [part.tolist() for part in softmax([jnp.zeros((1, 1)), jnp.zeros((1, 3))])]
    [[[0.25]], [[0.25, 0.25, 0.25]]]
    """
    normalizer = log_sum_exp(logits)
    return tuple(jnp.exp(part - normalizer[:, None]) for part in logits)


def log_sum_exp(logits: Sequence[Float[Array, "batch _"]]) -> Float[Array, "batch"]:
    """log(sum(exp)) of each row over the columns of all parts.

    >>> jnp.exp(log_sum_exp([jnp.zeros((1, 1)), jnp.zeros((1, 3))])).round(4).tolist()
    [4.0]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack([jnp.max(part, axis=1) for part in logits]), axis=0))
    total = jnp.sum(jnp.stack([jnp.sum(jnp.exp(part - largest[:, None]), axis=1) for part in logits]), axis=0)
    return largest + jnp.log(total)
