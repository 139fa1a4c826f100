"""Losses as pure functions over the global batch, whatever mesh it lies on."""

from jaxclip.losses.contrastive import softmax_contrastive as softmax_contrastive
