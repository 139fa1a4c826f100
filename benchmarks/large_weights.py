"""python benchmarks/large_weights.py FOLDER: peak memory for opening a model of 2.5 billion parameters.

Writes open_clip's ViT-bigG-14 (2,539,567,105 parameters) into FOLDER, in float16 as such models are published (5 GB),
and opens it as jaxclip.load does, in float32 and in bfloat16, each in a process of its own. Prints the peak memory of
the process without the mapped file (RssAnon, sampled), relative to the size of the parameters in that type.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np

CONFIG = {
    "model_cfg": {
        "embed_dim": 1280,
        "vision_cfg": {
            "image_size": 224,
            "layers": 48,
            "width": 1664,
            "head_width": 104,
            "mlp_ratio": 4.9231,
            "patch_size": 14,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1280, "heads": 20, "layers": 32},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--open", choices=("float32", "bfloat16"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        _open(arguments.folder, arguments.open)
        return
    if not (arguments.folder / "open_clip_model.safetensors").exists():
        _write(arguments.folder)
    for dtype in ("float32", "bfloat16"):
        subprocess.run([sys.executable, __file__, str(arguments.folder), f"--open={dtype}"], check=True)


def _write(folder: pathlib.Path) -> None:
    from jaxclip import methods
    from jaxclip.weights import tensor_map
    from jaxclip.weights.families import open_clip
    from jaxclip.weights.formats.safetensors_writer import write_tensors
    from jaxclip.weights.overrides import Answers, Questions
    from jaxclip.weights.public import build

    keys = open_clip.describe(str(folder), {}, CONFIG, Questions(str(folder), Answers()))
    method = build(str(folder), keys, 10_000)
    shapes = tensor_map.flat(methods.joined(*methods.abstract_variables(method)))
    random = np.random.default_rng(0)

    def values(shape: tuple[int, ...]):
        return lambda: (random.random(shape, np.float32) - 0.5).astype(np.float16)

    tensors = []
    for piece in open_clip.pieces(method):
        shape = piece.shape(shapes[piece.path].shape)
        tensors.append((piece.name, shape, np.dtype(np.float16), values(shape)))
    write_tensors(folder, "open_clip_model", tensors, limit=1 << 62)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))


def _open(folder: pathlib.Path, dtype: str) -> None:
    import jax

    from jaxclip import sharding
    from jaxclip.config import MeshConfig
    from jaxclip.weights.load import open_weights

    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    before = _anonymous()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_time = time.perf_counter()
    weights = open_weights(folder, tokenizer_needed=False)
    params, _ = jax.block_until_ready(weights.read(mesh, dtype))
    seconds = time.perf_counter() - start_time
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    size = sum(leaf.nbytes for leaf in leaves)
    print(
        f"{dtype}: {sum(leaf.size for leaf in leaves):,} parameters, {size / 2**30:.2f} GiB, in {seconds:.1f} s; "
        f"peak {peak[0] / 2**30:.2f} GiB, {before / 2**30:.2f} of it before opening: ratio {peak[0] / size:.2f}"
    )


def _anonymous() -> int:
    """Anonymous memory of this process in bytes, which does not include mapped files."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise OSError("no RssAnon in /proc/self/status")


if __name__ == "__main__":
    main()
