"""BERT's weights in Hugging Face's BertModel format, to initialize a text tower.

Follows transformers 5.23, models/bert: configuration_bert.py and modeling_bert.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxclip.towers.bert import BertConfig
from jaxclip.weights.checked_json import Keys
from jaxclip.weights.families.hugging_face.tensors import block_keys, blocks
from jaxclip.weights.formats.safetensors import Stored
from jaxclip.weights.tensor_map import LINEAR, Piece, layer_norm

_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_LAYERS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "attention_out": "attention.output.dense",
    "ln_1": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "ln_2": "output.LayerNorm",
}
_HEADS = ("cls.", "pooler.")  # the pretraining heads and the pooler

# What a method may have in addition to a BERT: cross-attention to images, and a head that the file may lack.
ADDED = r"^text/upper/blocks/(ln_cross/|cross_)|^words/"
_COUNTED = ("embeddings.position_ids", "embeddings.token_type_ids")


_WORDS = re.compile(r"((bert|roberta|distilbert|electra|mpnet)\.)?embeddings\.word_embeddings\.weight")


def is_one(tensors: Mapping[str, Stored]) -> bool:
    """Whether tensors are those of a text encoder alone that names them as BERT does, or as one of its successors."""
    return any(map(_WORDS.fullmatch, tensors)) and not any(name.startswith("visual") for name in tensors)


def describe(source: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a `towers.bert.BertConfig` from a BERT's config.json.

    Args:
      source: the folder, for messages.
      config: the content of config.json; missing keys have transformers' defaults.

    Raises:
      UserError: the config is not BERT's, is invalid, or has a value that the tower does not support.
    """
    keys = Keys(f"{source}, config.json", config, _DEFAULTS)
    keys.choice("model_type", {"bert": "bert"})
    keys.choice("position_embedding_type", {"absolute": "absolute"})
    keys.choice("type_vocab_size", {2: 2})
    keys.choice("is_decoder", {False: False})
    keys.choice("add_cross_attention", {False: False})
    return {
        "name": "bert",
        "vocab_size": keys.whole("vocab_size"),
        "context_length": keys.whole("max_position_embeddings"),
        **block_keys(keys),
    }


def names(tensors: Mapping[str, Stored], *, word_head: bool = False) -> dict[str, Stored]:
    """The tensors of the encoder under BertModel's names, and with `word_head` those of the head of masked words.

    The prefix "bert." of models with a head is removed, and so are other heads, the pooler and the position ids. Layer
    normalizations have a gamma and a beta if the file was converted from Google's, as bert-base-uncased's was.
    """
    short = {re.sub(r"^bert\.", "", name): tensor for name, tensor in tensors.items()}
    short = {re.sub(r"\.gamma$", ".weight", name): tensor for name, tensor in short.items()}
    short = {re.sub(r"\.beta$", ".bias", name): tensor for name, tensor in short.items()}
    head = {piece.name for piece in word_head_pieces()} if word_head else set()
    return {
        name: tensor
        for name, tensor in short.items()
        if name in head or not name.startswith(_HEADS) and name not in _COUNTED
    }


def pieces(config: BertConfig) -> list[Piece]:
    """The pieces of a BertModel: the complete text tower, in its two halves."""
    return [
        Piece("embeddings.word_embeddings.weight", "text/token_embedding"),
        Piece("embeddings.position_embeddings.weight", "text/positions"),
        Piece("embeddings.token_type_embeddings.weight", "text/segments"),
        *layer_norm("embeddings.LayerNorm", "text/ln_embedding"),
        *blocks("encoder.layer", "text/lower", config.width, range(config.lower_layers), _LAYERS),
        *blocks("encoder.layer", "text/upper", config.width, range(config.lower_layers, config.layers), _LAYERS),
    ]


def word_head_pieces() -> list[Piece]:
    """The pieces of the head of masked language modeling, a `towers.bert.WordHead`."""
    head = "cls.predictions"
    return [
        Piece(f"{head}.transform.dense.weight", "words/transform/kernel", layout=LINEAR),
        Piece(f"{head}.transform.dense.bias", "words/transform/bias"),
        *layer_norm(f"{head}.transform.LayerNorm", "words/ln"),
        Piece(f"{head}.bias", "words/bias"),
    ]
