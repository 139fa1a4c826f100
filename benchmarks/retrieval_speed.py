"""python benchmarks/retrieval_speed.py: ranks of images and captions among each other, beside NumPy's blocked product.

Random unit embeddings, five captions of each image. NumPy's side is the product alone, in the same blocks, without any
ranks. Prints seconds of both, the ratio, and the peak memory of the process; --alone leaves NumPy's side out.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxclip import sharding  # noqa: E402
from jaxclip.config import MeshConfig  # noqa: E402
from jaxclip.evaluate.ranking import ranks, recalls  # noqa: E402

BLOCK = 4096


def embeddings(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Unit vectors, float32 [rows, width]."""
    values = rng.standard_normal((rows, width), np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def product(images: np.ndarray, captions: np.ndarray) -> float:
    """Computes all similarities, a block at a time; the highest of them."""
    highest = -1.0
    for row in range(0, len(images), BLOCK):
        for column in range(0, len(captions), BLOCK):
            block = images[row : row + BLOCK] @ captions[column : column + BLOCK].T
            highest = max(highest, float(block[0, 0]))
    return highest


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = embeddings(rng, arguments.images, arguments.width)
    captions = embeddings(rng, arguments.captions, arguments.width)
    owners = np.arange(arguments.captions) * arguments.images // arguments.captions
    mesh = sharding.create(MeshConfig(), jax.devices())
    start = time.perf_counter()
    found = ranks(mesh, images, captions, np.arange(arguments.images), owners)
    ours = time.perf_counter() - start
    print(f"ranks: {ours:.1f} s; recall@10 of captions {recalls(found.keys)[10]:.2%}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if not arguments.alone:
        start = time.perf_counter()
        product(images, captions)
        theirs = time.perf_counter() - start
        print(f"NumPy's product: {theirs:.1f} s; ranks take {ours / theirs:.2f} times as long")


if __name__ == "__main__":
    main()
