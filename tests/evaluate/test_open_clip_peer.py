"""Zero-shot evaluations of whole data sets, compared with open_clip's and CLIP_benchmark's of the exported weights."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np
import pytest
from paths import TESTS

import jaxclip
from jaxclip import methods, recipes
from jaxclip.data.record import Record
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.data.tokenizers import files
from jaxclip.encoder import class_embeddings
from jaxclip.evaluate import Evaluation, zeroshot_classification, zeroshot_retrieval
from jaxclip.evaluate.classification_metrics import classified
from jaxclip.model import Model
from jaxclip.weights import tensor_map
from jaxclip.weights.__main__ import main
from jaxclip.weights.export import save

PROGRAM = TESTS / "helpers" / "peer_evaluation.py"
CLASSIFIED = ("cifar10", "caltech101", "gtsrb", "mnist")
RETRIEVED = "flickr8k"
TEMPLATES = ("a photo of a {c}.", "a blurry photo of the {c}.", "itap of a {c}.")

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def model(shared_data, tmp_path_factory) -> tuple[pathlib.Path, Model]:
    """A small CLIP of random weights, where it is, and opened.

    Fresh weights give all images nearly one embedding, so that most are taken for the same class. With kernels of three
    times the size the mean cosine of two images falls from 0.94 to below 0.5, and a wrong pixel changes predictions.
    """
    towers = {"image_size": 64, "patch_size": 16, "width": 128, "layers": 3}
    config = recipes.clip(**towers, text_width=128, text_layers=2, embed_dim=128)
    method = methods.from_config(config.to_dict())
    params, stats = methods.init_variables(method, jax.random.key(0))
    rng = np.random.default_rng(0)

    def spread(leaf: jax.Array) -> jax.Array:
        # Biases and gains are 0 and 1 at the start.
        return 3 * leaf if leaf.ndim > 1 else leaf + rng.uniform(-0.3, 0.3, leaf.shape).astype(np.float32)

    params = {path: leaf if leaf.ndim == 0 else spread(leaf) for path, leaf in tensor_map.flat(params).items()}
    folder = tmp_path_factory.mktemp("model") / "ours"
    tokenizer = files.load(shared_data / "bpe_simple_vocab_16e6.txt.gz")
    save(folder, "jaxclip", method, tokenizer, tensor_map.nested(params), stats)
    return folder, jaxclip.load(folder, batch_size=256)


def names_of(shared_data: pathlib.Path, name: str) -> list[str]:
    return json.loads((shared_data / name / "classes.json").read_text())


def tar_of(shared_data: pathlib.Path, name: str) -> str:
    return str(shared_data / name / "val-00000.tar")


@pytest.fixture(scope="module")
def theirs(model, shared_data, peer_python, tmp_path_factory) -> dict[str, Any]:
    """What open_clip and CLIP_benchmark find, as the program gives it."""
    folder = tmp_path_factory.mktemp("peer")
    assert main([str(model[0]), str(folder / "exported"), "--to=openclip"]) == 0
    sets: list[dict[str, Any]] = [{"name": RETRIEVED, "tar": tar_of(shared_data, RETRIEVED)}]
    for name in CLASSIFIED:
        prompts = {"classes": names_of(shared_data, name), "templates": TEMPLATES}
        sets.append({"name": name, "tar": tar_of(shared_data, name), **prompts})
    (folder / "sets.json").write_text(json.dumps(sets))
    arguments = [str(folder / name) for name in ("exported", "sets.json", "out.npz")]
    # Offline: nothing may be looked for on any server.
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    ran = subprocess.run([peer_python, str(PROGRAM), *arguments], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(np.load(folder / "out.npz"))


@pytest.mark.parametrize("name", CLASSIFIED)
def test_images_are_taken_for_the_classes_that_open_clip_takes_them_for(model, theirs, shared_data, name):
    tar, classes = tar_of(shared_data, name), names_of(shared_data, name)
    encoder, variables = model[1].evaluation_parts()
    source = open_source(tar)
    embedded = encoder.source(variables, source, SkipLog())
    keys = []
    for record in source.read(embedded.ids):
        assert isinstance(record, Record)
        keys.append(record.key.removeprefix("val-00000.tar:"))
    assert keys == theirs[f"{name}/keys"].tolist()
    labels = np.array(embedded.labels)
    np.testing.assert_array_equal(labels, theirs[f"{name}/labels"])
    texts = class_embeddings(encoder, variables, classes, TEMPLATES)
    predicted = classified(np.asarray(embedded.outputs), texts, labels).predicted
    assert (predicted == theirs[f"{name}/predicted"]).mean() >= 0.999
    assert np.bincount(predicted).max() < 0.5 * len(predicted), "too alike for this to say anything"
    # The same predictions are behind the figure that a user gets.
    evaluator = zeroshot_classification.Evaluator(
        tar, classes=str(shared_data / name / "classes.json"), templates=TEMPLATES
    )
    result = Evaluation(name, evaluator).run(encoder, variables)
    assert result["metrics"]["acc1"] == pytest.approx((predicted == labels).mean())


def test_the_recalls_of_captions_and_images_are_those_of_clip_benchmark_with_open_clip(model, theirs, shared_data):
    evaluation = Evaluation(RETRIEVED, zeroshot_retrieval.Evaluator(tar_of(shared_data, RETRIEVED)))
    metrics = evaluation.run(*model[1].evaluation_parts())["metrics"]
    recalls = {name: value for name, value in metrics.items() if "_recall@" in name}
    assert len(set(recalls.values())) == 6
    # Its means are float32, and one caption of 5,000 is 2e-4.
    assert recalls == pytest.approx({name: float(theirs[f"{RETRIEVED}/{name}"]) for name in recalls}, abs=1e-6)
