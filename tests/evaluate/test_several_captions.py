"""Several captions of one image, however they are written: one image in an evaluation, and the same six recalls."""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import png, write_tar
from look_up import mesh_of
from paths import TESTS

from jaxclip import methods
from jaxclip.config import PixelsConfig
from jaxclip.data import tokenizers
from jaxclip.data.findings import look_at
from jaxclip.data.images.crops import prepare
from jaxclip.data.images.decode import open_image
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.evaluate.zeroshot_retrieval import Evaluator

COLORS = ("red", "green", "blue", "white", "black", "gold")
# Twelve images, five captions each, interleaved where they are rows of their own.
IMAGES = {f"{left}-{right}": png(left, right) for left in COLORS for right in ("teal", "navy")}
CAPTIONS = {name: [f"{name} {number}" for number in range(5)] for name in IMAGES}
ROWS = [(name, CAPTIONS[name][number]) for number in range(5) for name in IMAGES]


def json_lists(folder: pathlib.Path) -> str:
    members = {f"{name}.json": json.dumps({"caption": captions}).encode() for name, captions in CAPTIONS.items()}
    return _tar(folder, {f"{name}.png": image for name, image in IMAGES.items()} | members)


def lines_of_txt(folder: pathlib.Path) -> str:
    members = {f"{name}.txt": "\n".join(captions).encode() + b"\n" for name, captions in CAPTIONS.items()}
    return _tar(folder, {f"{name}.png": image for name, image in IMAGES.items()} | members)


def repeated_members(folder: pathlib.Path) -> str:
    members = {}
    for number, (name, caption) in enumerate(ROWS):
        members |= {f"{number:03}.png": IMAGES[name], f"{number:03}.txt": caption.encode()}
    return _tar(folder, members)


def csv_rows(folder: pathlib.Path) -> str:
    for name, image in IMAGES.items():
        (folder / f"{name}.png").write_bytes(image)
    lines = ["path,caption", *(f"{name}.png,{caption}" for name, caption in ROWS)]
    (folder / "rows.csv").write_text("\n".join(lines))
    return str(folder / "rows.csv")


def parquet_rows(folder: pathlib.Path) -> str:
    table = pa.table({"image": [IMAGES[name] for name, _ in ROWS], "caption": [caption for _, caption in ROWS]})
    pq.write_table(table, folder / "rows.parquet")
    return str(folder / "rows.parquet")


def _tar(folder: pathlib.Path, members: dict[str, bytes]) -> str:
    return str(write_tar(folder / "set.tar", dict(sorted(members.items()))))


WAYS = (json_lists, lines_of_txt, repeated_members, csv_rows, parquet_rows)


@functools.cache
def encoder() -> tuple[Encoder, Any]:
    """An untrained CLIP: how good it is makes no difference here."""
    tokenizer = tokenizers.train([caption for captions in CAPTIONS.values() for caption in captions], 520)
    image = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
    text = {"vocab_size": 520, "context_length": 12, "width": 32, "layers": 1, "heads": 2}
    method = methods.from_config({"name": "clip", "embed_dim": 16, "image": image, "text": text})
    params, stats = methods.init_variables(method, jax.random.key(0))
    return Encoder(method, mesh_of(1), "float32", tokenizer, 32), methods.joined(params, stats)


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Of all images, and of all captions in their order."""
    model, variables = encoder()
    pixels = np.stack([prepare(open_image(image), 16, PixelsConfig()) for image in IMAGES.values()])
    texts = model.texts(variables, [caption for captions in CAPTIONS.values() for caption in captions])
    return np.asarray(model.images(variables, pixels)), np.asarray(texts)


def by_hand() -> dict[str, float]:
    """The figures by their definition: a query is found if one of its own is among the k most similar."""
    images, texts = embeddings()
    scores = texts @ images.T
    own = np.repeat(np.arange(len(images)), 5)[:, None] == np.arange(len(images))
    recalls = {}
    for name, matrix, right in (("image", scores, own), ("text", scores.T, own.T)):
        order = np.argsort(-matrix, axis=1, kind="stable")
        for k in (1, 5, 10):
            hits = np.take_along_axis(right, order[:, :k], axis=1).any(axis=1)
            recalls[f"{name}_retrieval_recall@{k}"] = float(np.mean(hits))
        # Before the first of its own, there are none but wrong ones.
        ranks = np.argmax(np.take_along_axis(right, order, axis=1), axis=1) + 1
        recalls |= {f"{name}_retrieval_median_rank": np.median(ranks), f"{name}_retrieval_mean_rank": np.mean(ranks)}
    return recalls


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_recalls_are_the_same_however_captions_are_written(tmp_path, way):
    model, variables = encoder()
    skips = SkipLog()
    result = Evaluator("data").run(model, variables, open_source(way(tmp_path)), skips, None)
    assert result.metrics == pytest.approx(by_hand(), abs=1e-12)
    assert not skips.total and len(set(result.metrics.values())) > 3, "no figure that any order would have"


@pytest.mark.peer
def test_clip_benchmarks_own_evaluation_of_the_same_embeddings_gives_the_same(tmp_path, peer_python):
    images, texts = embeddings()
    np.savez(tmp_path / "in.npz", images=images, texts=texts.reshape(len(images), 5, -1))
    program = TESTS / "helpers" / "peer_retrieval.py"
    subprocess.run([peer_python, str(program), str(tmp_path / "in.npz"), str(tmp_path / "out.json")], check=True)
    found = json.loads((tmp_path / "out.json").read_text())
    # It has no ranks.
    recalls = {name: value for name, value in by_hand().items() if "recall@" in name}
    assert len(recalls) == 6 and found == pytest.approx(recalls, abs=1e-6)  # means in float32


@pytest.mark.parametrize("way", [lines_of_txt, csv_rows], ids=lambda way: way.__name__)
def test_check_says_how_many_images_and_captions_there_are_more_than_once(tmp_path, way):
    findings = look_at(open_source(way(tmp_path)), 1000)
    repeated = {lines_of_txt: 0, csv_rows: 12}[way]
    assert findings.repeated_images == repeated and findings.repeated_captions == 0
