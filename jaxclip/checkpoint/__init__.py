"""Checkpoints: saved atomically in the background, verified when they are read, through Orbax.

A checkpoint is a folder, named by the number of steps done, with two parts: `state`, the arrays, and `model`, what else
is needed to use them as JSON (config, tokenizer, the run's history), with a digest of itself and a fingerprint of every
array.
"""

from jaxclip.checkpoint.folder import Damaged, find, load_model, load_variables, save_variables
from jaxclip.checkpoint.series import Checkpoints, Restored, newest_values, save_best

__all__ = [
    "Checkpoints",
    "Damaged",
    "Restored",
    "find",
    "load_model",
    "load_variables",
    "newest_values",
    "save_best",
    "save_variables",
]
