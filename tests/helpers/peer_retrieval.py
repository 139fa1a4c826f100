"""CLIP_benchmark's zero-shot retrieval of given embeddings; run in a Python that has it and torch.

python peer_retrieval.py IN.npz OUT.json: IN holds images [n, width] and texts [n, captions, width].
"""

import json
import sys

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_retrieval


class Given:
    """A model whose inputs are embeddings already: images as they are, texts by number."""

    def __init__(self, texts: torch.Tensor):
        self.texts = texts

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode_text(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.texts[numbers]


if __name__ == "__main__":
    arrays = {name: torch.tensor(array) for name, array in np.load(sys.argv[1]).items()}
    count, captions, width = arrays["texts"].shape
    model = Given(arrays["texts"].reshape(-1, width))
    numbers = [[str(captions * row + column) for column in range(captions)] for row in range(count)]
    half = count // 2
    batches = [(arrays["images"][rows], numbers[rows]) for rows in (slice(half), slice(half, count))]
    found = zeroshot_retrieval.evaluate(
        model,
        batches,
        lambda texts: torch.tensor([int(text) for text in texts]),
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
