"""Losses: pure functions of embeddings, exact over the global batch."""

from jaxclip.losses.contrastive import sigmoid_contrastive, softmax_contrastive

__all__ = ["sigmoid_contrastive", "softmax_contrastive"]
