"""Zero-shot evaluations by open_clip and CLIP_benchmark, from the bytes in a tar; runs in a Python with both.

python peer_evaluation.py FOLDER SETS.json OUT.npz: opens FOLDER as open_clip's own model, with its transform and
  tokenizer. SETS.json is a list of {"name", "tar"}, with "classes" and "templates" (a {c} for the name) of sets to be
  classified; the others have captions to retrieve. OUT has, for each image of the former, NAME/keys (of the members,
  without their endings), NAME/predicted and NAME/labels, and of the latter NAME/METRIC by CLIP_benchmark's names.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from typing import Any

import numpy as np
import open_clip
import torch
from clip_benchmark.metrics import zeroshot_retrieval
from PIL import Image

BATCH = 50
KS = [1, 5, 10]


def members(tar: str) -> dict[str, dict[str, bytes]]:
    """The files of each image, by its key and their endings."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            key, _, ending = member.name.partition(".")
            found.setdefault(key, {})[ending] = opened.extractfile(member).read()
    return found


class Peer:
    """A model of open_clip with its own transform and tokenizer."""

    def __init__(self, folder: str):
        self.model, _, self.transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    def batches(self, images: list[dict[str, bytes]]) -> list[torch.Tensor]:
        pixels = [self.transform(Image.open(io.BytesIO(one.get("jpg") or one["png"]))) for one in images]
        return [torch.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]

    def classify(self, tar: str, classes: list[str], templates: list[str]) -> dict[str, Any]:
        records = members(tar)
        phrases = [lambda name, phrase=phrase: phrase.replace("{c}", name) for phrase in templates]
        weights = open_clip.build_zero_shot_classifier(self.model, self.tokenizer, classes, phrases)
        with torch.no_grad():
            logits = [
                self.model.encode_image(batch, normalize=True) @ weights for batch in self.batches([*records.values()])
            ]
        return {
            "keys": [*records],
            "predicted": torch.cat(logits).argmax(dim=1).numpy(),
            "labels": [int(record["cls"]) for record in records.values()],
        }

    def retrieve(self, tar: str) -> dict[str, float]:
        records = [*members(tar).values()]
        captions = [json.loads(record["json"])["captions"] for record in records]
        of_batches = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
        loader = list(zip(self.batches(records), of_batches, strict=True))
        return zeroshot_retrieval.evaluate(self.model, loader, self.tokenizer, "cpu", amp=False, recall_k_list=KS)


def main(folder: str, sets: str, out: str) -> None:
    peer = Peer(folder)
    with open(sets) as file:
        asked = json.load(file)
    found: dict[str, Any] = {}
    for one in asked:
        name = one.pop("name")
        answer = peer.classify(**one) if "classes" in one else peer.retrieve(**one)
        found |= {f"{name}/{key}": value for key, value in answer.items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
