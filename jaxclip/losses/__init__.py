"""Losses: pure functions of embeddings, exact over the global batch."""

from jaxclip.losses.contrastive import nt_xent, sigmoid_contrastive, softmax_contrastive

__all__ = ["nt_xent", "sigmoid_contrastive", "softmax_contrastive"]
