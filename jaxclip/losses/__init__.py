"""Losses: pure functions of embeddings, exact over the global batch."""

from jaxclip.losses.contrastive import Teacher, sigmoid_contrastive, softmax_contrastive

__all__ = ["Teacher", "sigmoid_contrastive", "softmax_contrastive"]
