"""Class names and phrases for zero-shot classification, of well-known data sets and of published files.

`known.toml` has the lists, each with its source. Class names are WordNet's for ImageNet, labels of the installed
TensorFlow Datasets, or written here from what a paper says its classes are. Data sets of which no such source is at
hand have phrases alone: FGVC-Aircraft, Birdsnap and Kinetics-700. ObjectNet is left out, since which of its classes are
ImageNet's is known from its own archive alone.
"""

from __future__ import annotations

from jaxclip.evaluate.prompts.files import read_prompts
from jaxclip.evaluate.prompts.known import find, known
from jaxclip.evaluate.prompts.prompt_set import PromptSet

__all__ = ["PromptSet", "find", "known", "read_prompts"]
