"""Import and export compared with open_clip, transformers, torchvision and timm, in the Python named by PEER_PYTHON."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from collections.abc import Sequence

import commands
import jax
import numpy as np
import pytest
from paths import TESTS

import jaxclip
from jaxclip import methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.data.images.decode import decode
from jaxclip.data.record import Record
from jaxclip.data.sources import open_source
from jaxclip.data.tokenizers import wordpiece
from jaxclip.weights import tensor_map
from jaxclip.weights.__main__ import main
from jaxclip.weights.export import save
from jaxclip.weights.load import open_weights

PROGRAM = TESTS / "helpers" / "peer_weights.py"
TEXTS = ["a photo of a dog", "Two red circles, left of 3 blue stars!", "naïve café — ‘quoted’", "don't", "x"]
TEXTS += [f"a picture of number {number} in the rain" for number in range(11)]
# Texts whose cleaning a Hugging Face tokenizer.json cannot express: unescaping, repairs.
ODD = ["salt &amp;amp; pepper", "cafÃ© mended", "\u201ccurly\u201d &lt;b&gt;"]

pytestmark = pytest.mark.peer


def run(peer_python: str, *arguments: str) -> None:
    # Offline: nothing may be looked for on any server.
    ran = subprocess.run(
        [peer_python, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ, HF_HUB_OFFLINE="1"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def embed(
    peer_python: str, kind: str, folder: pathlib.Path, images: Sequence[str], texts: Sequence[str]
) -> dict[str, np.ndarray]:
    out = folder.with_name(f"{folder.name}.npz")
    inputs = folder.with_name(f"{folder.name}.json")
    inputs.write_text(json.dumps({"images": list(images), "texts": list(texts)}))
    run(peer_python, "embed", kind, str(folder), str(inputs), str(out))
    return dict(np.load(out))


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    source = open_source(str(shared_data / "photos" / "*.tar"))
    paths = []
    for number, record in enumerate(source.read(range(len(source)))):
        assert isinstance(record, Record) and isinstance(record.image, bytes)
        paths.append(str(folder / f"{number}.jpg"))
        pathlib.Path(paths[-1]).write_bytes(record.image)
    return paths


def near(found: np.ndarray, expected: np.ndarray, within: float) -> None:
    assert np.abs(found - expected).max() <= within * np.abs(expected).max()


def test_from_a_file_and_a_string_to_the_logit_as_open_clip_has_it(peer_python, shared_data, photographs, tmp_path):
    run(peer_python, "make", "ViT-B-32-quickgelu", str(tmp_path / "clip"))
    vocabulary = shared_data / "bpe_simple_vocab_16e6.txt.gz"
    model = jaxclip.load(tmp_path / "clip", tokenizer=vocabulary)
    texts = TEXTS + ODD
    theirs = embed(peer_python, "openclip", tmp_path / "clip", photographs, texts)
    np.testing.assert_array_equal(model.tokenize(texts), theirs["tokens"])
    expected = np.exp(theirs["logit_scale"]) * theirs["image"] @ theirs["text"].T + theirs["logit_bias"]
    logits = model.similarity(photographs, texts)
    assert np.abs(logits - expected).max() <= 2e-3
    assert expected.std() > 20 * 2e-3, "the logits are too alike for this to say anything"


def bits(folder: pathlib.Path) -> dict[str, bytes]:
    """Every array of a converted model."""
    weights = open_weights(folder)
    arrays = tensor_map.flat(methods.joined(*weights.read(sharding.create(MeshConfig(), jax.devices()[:1]))))
    return {path: np.asarray(array).tobytes() for path, array in arrays.items()}


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-32", "RN50", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"])
def test_exported_folders_are_the_peers_own_and_give_our_embeddings(
    peer_python, shared_data, photographs, tmp_path, name
):
    run(peer_python, "make", name, str(tmp_path / "made"))
    vocabulary = shared_data / "bpe_simple_vocab_16e6.txt.gz"
    if "SigLIP" in name:
        # There is no SentencePiece model to be had here; the folder asks for canonical texts in any case.
        vocabulary = tmp_path / "tokenizer.json"
        vocabulary.write_text(wordpiece.train(TEXTS * 20, 800).to_json())
    assert main([str(tmp_path / "made"), str(tmp_path / "ours"), "--to=jaxclip", f"--tokenizer={vocabulary}"]) == 0
    model = jaxclip.load(tmp_path / "ours")
    images, texts = photographs[:6], [text for text in TEXTS if text.isascii()]
    ours = {"image": model.encode_image(images), "text": model.encode_text(texts)}
    before = bits(tmp_path / "ours")
    for form in ("openclip",) if name == "RN50" else ("openclip", "huggingface"):
        there, back = tmp_path / form, tmp_path / f"{form}-back"
        assert main([str(tmp_path / "ours"), str(there), f"--to={form}"]) == 0
        theirs = embed(peer_python, form, there, images, texts)
        for tower in ("image", "text"):
            near(theirs[tower], ours[tower], 1e-5)
        assert np.exp(theirs["logit_scale"]) == pytest.approx(model.logit_scale, rel=1e-6)
        assert theirs["logit_bias"] == pytest.approx(model.logit_bias, rel=1e-6)
        again = ["--tokenizer", str(vocabulary)] if form == "openclip" else []
        assert main([str(there), str(back), "--to=jaxclip", *again]) == 0
        assert bits(back) == before


def test_a_trained_model_gives_its_retrieval_figures_inside_open_clip(peer_python, shared_data, tmp_path):
    """The emoji recipe for some steps: far from trained, but the figures are its own."""
    data = [f"--config.data.root={shared_data / 'emoji'}", "--config.steps=60", "--config.eval_every=0"]
    trained = commands.run(["--config=configs/emoji.py", f"--workdir={tmp_path}/run", *data], commands.environment())
    assert trained.status == 0, trained.stderr
    (result,) = (tmp_path / "run" / "evals" / "60").glob("*.json")
    assert main([str(tmp_path / "run"), str(tmp_path / "exported"), "--to=openclip"]) == 0
    source = open_source("val-00000.tar", root=str(shared_data / "emoji"))
    pairs = []
    for number, record in enumerate(source.read(range(len(source)))):
        assert isinstance(record, Record) and isinstance(record.image, bytes)
        path = tmp_path / f"{number}.png"
        # Over white, as we see them: open_clip would use the colors of transparent pixels.
        decode(record.image).save(path)
        pairs.append([str(path), list(record.captions)])
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    run(peer_python, "retrieve", str(tmp_path / "exported"), str(tmp_path / "pairs.json"), str(tmp_path / "out.json"))
    theirs = json.loads((tmp_path / "out.json").read_text())
    ours = json.loads(result.read_text())["metrics"]
    assert theirs == pytest.approx({key: ours[key] for key in theirs})
    assert len(theirs) == 6


VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
SIGLIP = {"pool": "map", "ln_pre": False, "patch_bias": True, "eps": 1e-6, "activation": "gelu"}
# Image towers here, and by the name and the keywords of each peer.
TOWERS = {
    "a small ResNet": (
        {"name": "resnet", "image_size": 96, "layers": (1, 2, 1, 1), "width": 64},
        [{"torchvision": "", "layers": [1, 2, 1, 1]}, {"timm": "resnet50", "layers": [1, 2, 1, 1]}],
    ),
    "ResNet-50": (
        {"name": "resnet", "image_size": 64, "layers": (3, 4, 6, 3), "width": 64},
        [{"torchvision": "resnet50"}, {"timm": "resnet50"}],
    ),
    "CLIP's": (VIT, [{"timm": "vit_base_patch32_clip_quickgelu_224", **TIMM_VIT}]),
    "a plain one": (VIT | SIGLIP | {"pool": "class"}, [{"timm": "vit_base_patch16_224", **TIMM_VIT}]),
    "SigLIP's": (VIT | SIGLIP, [{"timm": "vit_base_patch16_siglip_224", **TIMM_VIT}]),
}


@pytest.mark.parametrize("name", TOWERS)
def test_image_towers_alone_give_our_features_in_torchvision_and_in_timm(peer_python, tmp_path, name):
    image, peers = TOWERS[name]
    text = {"vocab_size": 600, "context_length": 8, "width": 64, "layers": 1, "heads": 1}
    pixels = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    method = methods.from_config({"name": "clip", "image": image, "text": text, "embed_dim": 8, "pixels": pixels})
    params, stats = map(tensor_map.flat, methods.init_variables(method, jax.random.key(0)))
    rng = np.random.default_rng(0)
    # Scales and running averages as training leaves them: none is 0 or 1, and no two are equal.
    params = {
        path: leaf + rng.uniform(-0.3, 0.3, leaf.shape).astype(np.float32) * (leaf.ndim == 1)
        for path, leaf in params.items()
    }
    stats = {path: leaf + rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32) for path, leaf in stats.items()}
    save(tmp_path / "ours", "jaxclip", method, None, tensor_map.nested(params), tensor_map.nested(stats))
    images = rng.integers(0, 256, (4, *(image["image_size"],) * 2, 3), np.uint8)
    expected = jaxclip.load(tmp_path / "ours").features(images)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, images=images, **{key: np.float32(value) for key, value in pixels.items()})
    for number, peer in enumerate(peers):
        form, out = next(iter(peer)), tmp_path / f"{number}.npz"
        assert main([str(tmp_path / "ours"), str(tmp_path / form), "--part=image", f"--to={form}"]) == 0
        run(peer_python, "features", json.dumps(peer), str(tmp_path / form), str(inputs), str(out))
        near(np.load(out)["features"], expected, 1e-5)
    assert expected.std(axis=0).mean() > 100 * 1e-5 * np.abs(expected).max(), "too alike for this to say anything"
