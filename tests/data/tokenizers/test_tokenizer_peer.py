"""CLIP's token ids compared with open_clip's, in the Python named by PEER_PYTHON or, if possible, in this one."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys

import numpy as np
import pytest
from tokenizer_reference import END, START, STRINGS

from benchmarks.tokenizer_speed import CONTEXT, Peer, english, odd_strings
from jaxclip.data import tokenizers


@pytest.mark.peer
def test_ids_equal_open_clips(shared_data):
    python = os.environ.get("PEER_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("open_clip") is None:
        pytest.skip("set PEER_PYTHON to a Python that has open_clip_torch")
    tokenizer = tokenizers.load(shared_data / "bpe_simple_vocab_16e6.txt.gz")
    # open_clip spells the start and end tokens otherwise than OpenAI does.
    texts = [text for text in STRINGS if START not in text and END not in text]
    texts += itertools.islice(odd_strings(english(tokenizer)), 10_000)
    with Peer(python) as peer:
        ids = peer(texts)[1]
    tokens, _ = tokenizer(texts, CONTEXT)
    wrong = np.flatnonzero((tokens != ids).any(axis=1))
    assert not wrong.size, [texts[row] for row in wrong[:3]]
