"""Hard negatives for image-text matching (ALBEF, Li et al. 2021, section 3.1).

Negatives are drawn within groups of consecutive records. On a mesh whose devices hold whole groups, neither the draw
nor the gathering of the negatives' tokens moves anything between devices; the drawn negatives are the same on any mesh.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt32

_FACTOR = 0x9E3779B1  # of the polynomial of a text's digest: a prime near 2^32 / the golden ratio


class Negatives(NamedTuple):
    """A wrong text for each image, and a wrong image for each text, by their places in the group.

    Attributes:
      text: of each image.
      image: of each text.
      exist: whether a record has any negative in its group.
    """

    text: Int[Array, "batch"]
    image: Int[Array, "batch"]
    exist: Bool[Array, "batch"]


def hard_negatives(
    images: Float[Array, "batch width"],
    texts: Float[Array, "batch width"],
    scale: Float[Array, ""] | float,
    same: Shaped[Array, "batch"],
    group: int,
    key: Key[Array, ""],
) -> Negatives:
    """Draws negatives with the probabilities that the softmax of the scaled cosines gives them.

    Args:
      images, texts: unit embeddings of pairs.
      scale: of the cosines.
      same: records in which this is equal are never negatives of each other: a record's number, or `digests` of texts.
      group: records of a group; divides the batch.
      key: of the draws.

    >>> pairs = jnp.eye(4)
    >>> found = hard_negatives(pairs, pairs, 1.0, jnp.arange(4), 2, jax.random.key(0))
    >>> found.text.tolist(), found.image.tolist()
    ([1, 0, 1, 0], [1, 0, 1, 0])
    """
    keys = jax.random.split(key, 2 * (len(images) // group)).reshape(-1, 2)

    def of_group(images: Array, texts: Array, same: Array, keys: Array) -> Negatives:
        logits = scale * images.astype(jnp.float32) @ texts.astype(jnp.float32).T
        barred = same[:, None] == same
        text, image = (
            jax.random.categorical(key, jnp.where(barred, -jnp.inf, given))
            for key, given in zip(keys, (logits, logits.T), strict=True)
        )
        return Negatives(text, image, ~jnp.all(barred, axis=1))

    found = jax.vmap(of_group)(_grouped(images, group), _grouped(texts, group), _grouped(same, group), keys)
    return Negatives(*(part.reshape(-1) for part in found))


def digests(tokens: Int[Array, "batch length"]) -> UInt32[Array, "batch"]:
    """A number for each text; those of different texts are different but for one pair in four billion.

    >>> len(set(digests(jnp.array([[1, 2, 3], [1, 3, 2], [1, 2, 3]])).tolist()))
    2
    """
    powers = np.cumprod(np.full(tokens.shape[1], _FACTOR, np.uint32), dtype=np.uint32)
    return jnp.sum(tokens.astype(jnp.uint32) * powers, axis=1, dtype=jnp.uint32)


def pick(rows: Shaped[Array, "batch *rest"], index: Int[Array, "batch"], group: int) -> Shaped[Array, "batch *rest"]:
    """Rows by their places in the group of each record.

    >>> pick(jnp.array([10, 11, 12, 13]), jnp.array([1, 1, 0, 1]), 2).tolist()
    [11, 11, 12, 13]
    """
    found = jax.vmap(lambda rows, index: rows[index])(_grouped(rows, group), _grouped(index, group))
    return found.reshape(rows.shape)


def _grouped(x: Array, group: int) -> Array:
    return x.reshape(-1, group, *x.shape[1:])
