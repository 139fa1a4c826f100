"""BERT's states compared with those of transformers' BertModel, in the Python named by PEER_PYTHON."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import TESTS
from starting import changed, started

from jaxclip import methods
from jaxclip.weights import tensor_map

LENGTHS = (1, 2, 7, 15, 24)
BERT = {"name": "bert", "vocab_size": 90, "width": 64, "layers": 3, "heads": 4, "mlp_width": 160}

pytestmark = pytest.mark.peer


def run(peer_python: str, *arguments: str) -> None:
    # Offline: nothing may be looked for on any server.
    ran = subprocess.run(
        [peer_python, str(TESTS / "helpers" / "peer_weights.py"), *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ, HF_HUB_OFFLINE="1"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.fixture(scope="module")
def theirs(peer_python, tmp_path_factory) -> tuple[pathlib.Path, list[list[int]], np.ndarray]:
    """The folder of a BertModel, rows of token ids, and its last hidden states for them."""
    folder = tmp_path_factory.mktemp("bert")
    run(peer_python, "bert", str(folder / "bert"))
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 90, length).tolist() for length in LENGTHS]
    (folder / "ids.json").write_text(json.dumps(rows))
    run(peer_python, "states", str(folder / "bert"), str(folder / "ids.json"), str(folder / "states.npz"))
    return folder / "bert", rows, np.load(folder / "states.npz")["states"]


@pytest.mark.parametrize("lower", [0, 1, -1])
def test_the_states_of_a_bert_are_those_of_transformers(theirs, lower):
    """However its blocks are divided into halves, and with the dropout of a run that fine-tunes it."""
    folder, rows, expected = theirs
    keys = changed(text=BERT | {"context_length": max(LENGTHS), "lower": lower, "drop": 0.1})
    arrays, _, taken = started(str(folder), keys, "^text/", tokenizer=None)
    assert taken == sum(values.size for path, values in arrays.items() if path.startswith("text/"))
    model = methods.bind(methods.from_config(keys))(jax.tree.map(jnp.asarray, tensor_map.nested(arrays)))
    tokens = np.zeros((len(rows), max(LENGTHS)), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    end = jnp.array([len(ids) - 1 for ids in rows])
    states = np.asarray(model.text.tokens(jnp.asarray(tokens), end))
    seen = np.arange(max(LENGTHS)) <= np.asarray(end)[:, None]
    np.testing.assert_allclose(states[seen], expected[seen], rtol=0, atol=1e-5)
    assert expected[seen].std() > 0.5, "the states are too small for this to say anything"
