"""The halves of ALBEF's BERT and its word head as modules of transformers; runs in a Python with that library.

python peer_fusion.py OUT.npz: random weights under BertForPreTraining's names, and what the modules give for random
  texts and images: `lower` for `tokens`, `fused` for `states` and `images`, and `logits` for `states`. The last token
  of each text is at `end`.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertLMPredictionHead

BATCH, LENGTH, PLACES, IMAGE_WIDTH, LOWER = 5, 24, 10, 48, 2
SIZES = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 160}


def config(**keys: bool) -> BertConfig:
    made = BertConfig(vocab_size=90, max_position_embeddings=LENGTH, **SIZES, **keys)
    made._attn_implementation = "eager"
    return made


def fusing(number: int) -> BertLayer:
    """A block whose keys and values are of images."""
    block = BertLayer(config(is_decoder=True, add_cross_attention=True), number)
    for name in ("key", "value"):
        setattr(block.crossattention.self, name, torch.nn.Linear(IMAGE_WIDTH, SIZES["hidden_size"]))
    return block


def main(out: str) -> None:
    torch.manual_seed(0)
    numbers = range(SIZES["num_hidden_layers"])
    layers = [BertLayer(config(), number) if number < LOWER else fusing(number) for number in numbers]
    model = torch.nn.ModuleDict(
        {
            "embeddings": BertEmbeddings(config()),
            "encoder": torch.nn.ModuleDict({"layer": torch.nn.ModuleList(layers)}),
            "cls": torch.nn.ModuleDict({"predictions": BertLMPredictionHead(config())}),
        }
    ).eval()
    given = {
        "end": torch.tensor([0, 1, 6, 14, LENGTH - 1]),
        "tokens": torch.randint(1, 90, (BATCH, LENGTH)),
        "states": torch.randn(BATCH, LENGTH, SIZES["hidden_size"]),
        "images": torch.randn(BATCH, PLACES, IMAGE_WIDTH),
    }
    hidden = torch.arange(LENGTH) > given["end"][:, None]
    mask = hidden[:, None, None] * -1e30
    with torch.no_grad():
        # So that no bias and no gain is without effect.
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        # As in BertForPreTraining.
        head = model["cls"]["predictions"]
        head.decoder.weight, head.decoder.bias = model["embeddings"].word_embeddings.weight, head.bias
        weights = {f"weights/{name}": value.clone() for name, value in model.state_dict().items()}
        # In float64, so that the rounding in a comparison is the other side's alone.
        model.double()
        lower = model["embeddings"](given["tokens"])
        for layer in layers[:LOWER]:
            lower = layer(lower, mask)
        fused, images = given["states"].double(), given["images"].double()
        for layer in layers[LOWER:]:
            fused = layer(fused, mask, images)
        found = {"lower": lower, "fused": fused, "logits": head(given["states"].double())}
    found = {name: value.float() for name, value in found.items()}
    np.savez(out, **{name: value.numpy() for name, value in (given | found | weights).items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
