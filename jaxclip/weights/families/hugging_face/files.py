"""Writer of the files beside a model's weights for transformers and open_clip: config, preprocessor, tokenizer.

Follows transformers 5.23: models/auto/tokenization_auto.py, tokenization_utils_tokenizers.py,
models/siglip/tokenization_siglip.py.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, processors

from jaxclip.data.tokenizers import Tokenizer, normalizing
from jaxclip.data.tokenizers.clip import END, START, WORD_END, ClipTokenizer
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.weights.families.hugging_face.pixels import pixels_of
from jaxclip.weights.families.hugging_face.tensors import config_of, towers


def write_files(folder: pathlib.Path, method: clip.Method, tokenizer: Tokenizer) -> None:
    """Writes the files of a Hugging Face folder except the weights.

    With the weights, `CLIPModel` or `SiglipModel.from_pretrained` opens the folder. `AutoProcessor.from_pretrained`
    prepares images and, with padding="max_length" and truncation=True, texts.

    Args:
      folder: an existing folder.
      method: the model's method.
      tokenizer: the model's tokenizer.

    Raises:
      UserError: Hugging Face has no such model, or a file cannot be written.
    """
    kind, _, _ = towers(method)
    _write_json(folder / "config.json", config_of(method, tokenizer))
    _write_json(folder / "preprocessor_config.json", pixels_of(method.pixels, kind, method.image.image_size))
    write_tokenizer(folder, method, tokenizer)


def write_tokenizer(folder: pathlib.Path, method: clip.Method, tokenizer: Tokenizer) -> None:
    """Writes a vocabulary for `AutoTokenizer.from_pretrained`, and so for open_clip's `HFTokenizer`.

    The resulting ids equal jaxclip's with three exceptions:

    - Repairs of texts are limited to control characters and curly quotes, because the files cannot express others; here
      and in open_clip, ftfy and html.unescape do them.
    - If a tower is causal and read at the end token, so that a text's embedding does not depend on what follows, texts
      are padded with end tokens, as in all folders of CLIP models. jaxclip pads with id 0, which is "!" in CLIP's
      vocabulary, but transformers treats a padding token as padding wherever it occurs in a text.
    - transformers' SiglipTokenizer removes underscores, which are spaces in big_vision, in open_clip and here.

    Args:
      folder: an existing folder.
      method: the model's method.
      tokenizer: the model's tokenizer.

    Raises:
      UserError: a file cannot be written.
    """
    length = method.text.context_length
    # Whether the padding does not affect embeddings.
    free = method.text.name == "text" and method.text.causal and method.text.pool == "end"
    settings: dict[str, Any] = {
        "model_max_length": length,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    if not free and method.text.name == "text":
        # Otherwise a mask would hide the padding, which these towers were trained with.
        settings["model_input_names"] = ["input_ids"]
    if isinstance(tokenizer, SentencePieceTokenizer):
        special = {"eos_token": tokenizer.piece(tokenizer.end_id), "pad_token": tokenizer.piece(tokenizer.pad_id)}
        if tokenizer.clean == "canonical":
            settings |= {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
            _write(folder / "spiece.model", tokenizer.model)
        else:
            kind = "Siglip2Tokenizer" if tokenizer.clean == "lower" else "GemmaTokenizer"
            settings |= {"tokenizer_class": kind, "add_bos_token": False, "add_eos_token": True}
            _write(folder / "tokenizer.model", tokenizer.model)
    else:
        text = tokenizer.to_json()
        if isinstance(tokenizer, ClipTokenizer):
            _write_pair(folder, json.loads(text)["model"])
            text = _clip_json(text, tokenizer, length)
        backend = tokenizers.Tokenizer.from_str(text)
        special = _special(backend, tokenizer, free)
        # Unlike CLIPTokenizer, which builds its own steps, this class uses the file unchanged.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        added = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        # A padding token that is also an ordinary token must stay ordinary in texts. The library also looks for special
        # tokens before it normalizes, but texts cleaned of punctuation must not contain any.
        clean = tokenizer.clean if isinstance(tokenizer, HuggingFaceTokenizer) else None
        bare = clean is not None and not normalizing.CLEANINGS[clean].punctuation
        settings["split_special_tokens"] = bare or special["pad_token"] not in added
        _write(folder / "tokenizer.json", text.encode())
    _write_json(folder / "tokenizer_config.json", settings | special)
    _write_json(folder / "special_tokens_map.json", special)


def _special(backend: tokenizers.Tokenizer, tokenizer: Tokenizer, free: bool) -> dict[str, str]:
    """The special tokens under transformers' names."""
    ids = {"bos_token": tokenizer.start_id, "eos_token": tokenizer.end_id, "pad_token": tokenizer.pad_id}
    if isinstance(tokenizer, ClipTokenizer):
        ids["unk_token"] = tokenizer.end_id
        if free:
            ids["pad_token"] = tokenizer.end_id
    named = {name: backend.id_to_token(i) for name, i in ids.items() if i is not None}
    return {name: token for name, token in named.items() if token is not None}


def _clip_json(text: str, tokenizer: ClipTokenizer, length: int) -> str:
    """The tokenizer.json of a ClipTokenizer, with its normalization and post-processing."""
    backend = tokenizers.Tokenizer.from_str(text)
    backend.normalizer = normalizers.Sequence(
        [
            *normalizing.REPAIRS,
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=True, special=True) for token in (START, END)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, tokenizer.start_id), (END, tokenizer.end_id)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(WORD_END, " "), decoders.Strip(" ", 0, 1)]
    )
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=tokenizer.pad_id, pad_token=backend.id_to_token(tokenizer.pad_id))
    return backend.to_str()


def _write_pair(folder: pathlib.Path, model: Mapping[str, Any]) -> None:
    """Writes vocab.json and merges.txt, for programs that do not read a tokenizer.json."""
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    _write(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False).encode())
    _write(folder / "merges.txt", f"#version: 0.2\n{merges}".encode())


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _write(path: pathlib.Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make room or name another folder") from None
