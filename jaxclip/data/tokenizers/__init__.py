"""Tokenizers from text to token ids of a fixed length, one module per kind of vocabulary.

`load` opens a published vocabulary, `train` trains one on a run's captions, and `from_json` restores one that a run
saved.
"""

from __future__ import annotations

import os

from jaxclip.data.tokenizers.clip import train
from jaxclip.data.tokenizers.files import from_json, load
from jaxclip.data.tokenizers.tokenizer import Tokenizer, generated_text, text_lengths

# The loader calls from several threads, with which a thread pool inside every call would only compete. Earlier releases
# of the library also warn in each fork of a process that has used it. The user's own setting takes precedence.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__all__ = ["Tokenizer", "from_json", "generated_text", "load", "text_lengths", "train"]
