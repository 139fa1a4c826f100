"""Masking of tokens for masked language modeling (Devlin et al. 2019, section 3.1, task 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Masked(NamedTuple):
    """Texts with some tokens replaced. All texts have as many slots; those that a text does not use have weight 0.

    Attributes:
      tokens: of the texts, with the replacements.
      slots: places of the chosen tokens.
      labels: what stood there.
      weights: 1 for a chosen token, 0 for none.
    """

    tokens: Int[Array, "batch length"]
    slots: Int[Array, "batch slots"]
    labels: Int[Array, "batch slots"]
    weights: Float[Array, "batch slots"]


def mask_tokens(
    tokens: Int[Array, "batch length"],
    end: Int[Array, "batch"],
    keys: Key[Array, "batch"],
    *,
    mask_id: int,
    vocab_size: int,
    share: float = 0.15,
    masked: float = 0.8,
    replaced: float = 0.1,
) -> Masked:
    """Chooses tokens at random and replaces most of them.

    Of the tokens between start and end, `share` are chosen, rounded up. Each is a label, whatever it is replaced by:
    the mask token with the probability `masked`, a random token with the probability `replaced`, itself otherwise.

    Args:
      tokens: of the texts, start and end included.
      end: place of each text's end token.
      keys: one per text.
      mask_id: of the mask token.
      vocab_size: random tokens are below it.
      share, masked, replaced: see above; BERT's by default.

    >>> tokens, keys = jnp.array([[1, 7, 8, 9, 2, 0]]), jax.random.split(jax.random.key(0), 1)
    >>> found = mask_tokens(tokens, jnp.array([4]), keys, mask_id=3, vocab_size=10, masked=1.0, replaced=0.0)
    >>> (found.tokens == 3).sum().item(), found.weights.tolist()
    (1, [[1.0]])
    """
    length = tokens.shape[1]
    slots = max(1, math.ceil(share * (length - 2)))

    def of_text(tokens: Array, end: Array, key: Array) -> Masked:
        order_key, kind_key, word_key = jax.random.split(key, 3)
        places = jnp.arange(length)
        inside = (places > 0) & (places < end)
        count = jnp.sum(inside)
        wanted = jnp.ceil(share * count - 1e-4)  # 0.15 * 20 may be a little more than 3.
        # The first places in a random order, those inside the text before all others.
        order = jnp.argsort(jnp.where(inside, jax.random.uniform(order_key, (length,)), 2.0))[:slots]
        weights = (jnp.arange(slots) < wanted).astype(jnp.float32)
        labels = tokens[order]
        kind = jax.random.uniform(kind_key, (slots,))
        words = jax.random.randint(word_key, (slots,), 0, vocab_size, tokens.dtype)
        new = jnp.where(kind < masked, mask_id, jnp.where(kind < masked + replaced, words, labels))
        new = jnp.where(weights > 0, new, labels)
        return Masked(tokens.at[order].set(new), order, labels, weights)

    return jax.vmap(of_text)(tokens, end, keys)


def text_keys(tokens: Int[Array, "batch length"]) -> Key[Array, "batch"]:
    """A random key for each text that depends on its tokens alone."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), jnp.sum(row)))(tokens)


def soft_cross_entropy(
    logits: Float[Array, "*batch words"],
    labels: Int[Array, "*batch"],
    teacher: Float[Array, "*batch words"] | None = None,
    weight: Float[Array, "*#batch"] | float = 0.0,
) -> Float[Array, "*batch"]:
    """The cross-entropy with labels of which a teacher's softmax takes the share `weight`, in nats.

    (1 - weight) H(label, p) + weight H(softmax(teacher), p), which is ALBEF's loss of masked words up to a constant (Li
    et al. 2021, equation 7).

    >>> soft_cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(4).tolist()
    [1.386299967765808]
    """
    log_shares = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_shares, labels[..., None], axis=-1)[..., 0]
    if teacher is None:
        return losses
    soft = jax.lax.stop_gradient(jax.nn.softmax(teacher.astype(jnp.float32)))
    return (1 - weight) * losses - weight * jnp.sum(soft * log_shares, axis=-1)
