"""Both halves of ALBEF's BERT and its word head compared with transformers', in the Python named by PEER_PYTHON."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from paths import TESTS

from jaxclip.towers.bert import Bert, BertConfig, WordHead
from jaxclip.weights import tensor_map
from jaxclip.weights.families import bert

IMAGE_WIDTH, LOWER = 48, 2  # of peer_fusion.py
CONFIG = BertConfig(vocab_size=90, context_length=24, width=64, layers=5, heads=4, mlp_width=160, lower=LOWER, drop=0.1)
Arrays = dict[str, np.ndarray]

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def theirs(peer_python, tmp_path_factory) -> Arrays:
    out = tmp_path_factory.mktemp("fusion") / "out.npz"
    helper = str(TESTS / "helpers" / "peer_fusion.py")
    # Offline: nothing may be looked for on any server.
    ran = subprocess.run(
        [peer_python, helper, str(out)], capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE="1")
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(np.load(out))


def cross_attention(weights: Arrays) -> Arrays:
    """The arrays of the upper half that a BERT alone does not have."""

    def stacked(name: str) -> np.ndarray:
        names = [f"encoder.layer.{number}.crossattention.{name}" for number in range(LOWER, CONFIG.layers)]
        return np.stack([np.moveaxis(weights[name], -1, 0) for name in names])

    found = {
        "cross_q_kernel": stacked("self.query.weight"),
        "cross_q_bias": stacked("self.query.bias"),
        "cross_kv_kernel": np.concatenate([stacked("self.key.weight"), stacked("self.value.weight")], axis=-1),
        "cross_kv_bias": np.concatenate([stacked("self.key.bias"), stacked("self.value.bias")], axis=-1),
        "cross_out_kernel": stacked("output.dense.weight"),
        "cross_out_bias": stacked("output.dense.bias"),
        "ln_cross/scale": stacked("output.LayerNorm.weight"),
        "ln_cross/bias": stacked("output.LayerNorm.bias"),
    }
    return {f"text/upper/blocks/{name}": values for name, values in found.items()}


def filled(tower: Bert, head: WordHead, weights: Arrays) -> None:
    """Gives every parameter of both its value."""
    modules = {"text": tower, "words": head}
    states = {name: nnx.state(module, nnx.Param) for name, module in modules.items()}
    pure = {name: nnx.to_pure_dict(state) for name, state in states.items()}
    arrays = {path: np.full(leaf.shape, np.nan, np.float32) for path, leaf in tensor_map.flat(pure).items()}
    for piece in bert.pieces(CONFIG) + bert.word_head_pieces():
        part = arrays[piece.path][piece.where] if piece.where else arrays[piece.path]
        part[...] = piece.layout.to_ours(weights[piece.name])
    for path, values in cross_attention(weights).items():
        arrays[path][...] = values
    assert not [path for path, values in arrays.items() if np.isnan(values).any()]
    nested: dict[str, Any] = tensor_map.nested({path: jnp.asarray(values) for path, values in arrays.items()})
    for name, module in modules.items():
        nnx.replace_by_pure_dict(states[name], nested[name])
        nnx.update(module, states[name])


@pytest.fixture(scope="module")
def ours(theirs) -> tuple[Bert, WordHead]:
    tower = CONFIG.init(rngs=nnx.Rngs(params=0), context_width=IMAGE_WIDTH)
    head = WordHead(CONFIG, rngs=nnx.Rngs(params=0))
    prefix = "weights/"
    filled(tower, head, {name[len(prefix) :]: values for name, values in theirs.items() if name.startswith(prefix)})
    return tower, head


def assert_equal_where_seen(theirs: Arrays, states: Any, name: str) -> None:
    """At the tokens of each text: those behind its end are never used, and differ."""
    seen = np.arange(CONFIG.context_length) <= theirs["end"][:, None]
    expected = theirs[name][seen]
    np.testing.assert_allclose(np.asarray(states)[seen], expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.5, "the states are too small for this to say anything"


def test_the_lower_half_encodes_texts_as_transformers_does(theirs, ours):
    tokens, end = (jnp.asarray(theirs[name], jnp.int32) for name in ("tokens", "end"))
    assert_equal_where_seen(theirs, ours[0].lower_states(tokens, end), "lower")


def test_the_upper_half_fuses_texts_with_images_as_transformers_does(theirs, ours):
    """Image tokens of another width than the text's; the text sees no padding, and all of the image."""
    states, images, end = (jnp.asarray(theirs[name]) for name in ("states", "images", "end"))
    assert_equal_where_seen(theirs, ours[0].upper_states(states, end, context=images), "fused")


def test_the_word_head_scores_words_as_transformers_does(theirs, ours):
    tower, head = ours
    logits = head(jnp.asarray(theirs["states"]), tower.token_embedding[...])
    # Sums of 64 products with numbers of up to 3.
    np.testing.assert_allclose(np.asarray(logits), theirs["logits"], rtol=1e-5, atol=1e-5)
    assert theirs["logits"].std() > 0.5
