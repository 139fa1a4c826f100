"""Captions in, token ids of a fixed length out; one file per kind of vocabulary.

`load` opens a published one, `train` makes one of a run's own captions, and `from_json` restores what a run saved.
"""

from __future__ import annotations

import os

from jaxclip.data.tokenizers.clip import train
from jaxclip.data.tokenizers.files import from_json, load
from jaxclip.data.tokenizers.tokenizer import Tokenizer

# The loader calls from several threads: a pool of threads inside every call would only compete with those, and earlier
# releases of the library warn in each fork of a process that has used it. Read at each call; the user's own wins.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__all__ = ["Tokenizer", "from_json", "load", "train"]
