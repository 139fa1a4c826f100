"""Bounds on how much a tokenizer.json can lengthen its input; a few malicious lines could otherwise exhaust memory.

A normalizer that replaces each letter by two hundred, applied four times, turns one letter into billions, and the
library aborts the process if their allocation fails. Growth is the maximum number of characters per input character.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import tokenizers

_MOST = 512  # BERT's, T5's, Gemma's and GPT-2's are below 30, and below 200 if their texts are cleaned first
_MOST_STEPS = 64
_MOST_NESTED = 16
_MOST_AROUND = 1024  # ids around a text; captions have 64 to 256 in all
_LONGEST_NAME = 1024  # characters of a string that is written for each token or tried at each character
_LONGEST_WORD = 1024  # characters; WordPiece's time grows as their cube. BERT's limit is 100
_MOST_ADDED = 1 << 24  # characters of the added tokens after normalization, which happens when a file is opened

# Steps that lengthen some characters: by Unicode's own tables (compatibility forms of U+FDFA have 18), into a
# character's bytes, by spaces around one. Steps listed neither here nor below remove or replace single characters.
_GROWTH = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 2,
    "BertNormalizer": 6,
    "ByteLevel": 5,
    "Metaspace": 2,
    "WordPiece": 2,
    "BPEDecoder": 2,
    "CTC": 3,
}
# Expressions that do not match the empty text: one character, or one of a set, once or more often.
_MATCHES_SOME = re.compile(
    r"(?:\\[dswDSWnrt]|\[\^?(?:\\.|[^\\\[\]])+\]|[^\\^$.|?*+()\[\]{}#])(?:\+|\{[1-9]\d*(?:,\d*)?\})?"
)


def check(text: str) -> int:
    """The growth of texts between a tokenizer.json's input and its tokens. Raises ValueError if it is too large.

    The library first parses the steps alone, with a vocabulary of one word, and writes them back in its own form,
    because it accepts files without explicit types. So this can fail as the library does. If it does not fail, the
    library can safely open the file.
    """
    content = json.loads(text, object_pairs_hook=_without_repeats)
    steps = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    _check_unread(steps)
    only = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}
    read = json.loads(tokenizers.Tokenizer.from_str(json.dumps(only | steps)).to_str())
    grown = growth(read["normalizer"])
    added = sum(len(one["content"]) for one in content.get("added_tokens") or () if one.get("normalized", True))
    if added * grown > _MOST_ADDED:
        raise ValueError(f"its added tokens may become {added * grown} characters long")
    grown *= growth(read["pre_tokenizer"])
    _check_growth(grown)
    _check_growth(growth(read["decoder"]))
    _check_around(read["post_processor"])
    _check_model(content["model"])
    return grown


def growth(step: dict[str, Any] | None) -> int:
    """The maximum number of characters that a normalizer, a pre-tokenizer or a decoder makes of one.

    Raises ValueError if it is larger than in any valid file, or if there are too many steps.
    """
    grown = 1
    for number, one in enumerate(_leaves(step), start=1):
        if number > _MOST_STEPS:
            raise ValueError(f"more than {_MOST_STEPS} steps one after the other")
        grown *= _growth_of_one(one)
        _check_growth(grown)
    return grown


def _leaves(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The elementary steps within a step, however deeply nested."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for kind in ("normalizers", "pretokenizers", "decoders", "processors"):
        for one in step.get(kind, ()):
            yield from _leaves(one)


def _growth_of_one(step: dict[str, Any]) -> int:
    match step["type"]:
        case "Replace":
            ((kind, pattern),) = step["pattern"].items()
            written = len(step["content"])
            if kind == "String" and pattern:
                return max(1, -(-written // len(pattern)))
            # A match of the empty text inserts something between all characters.
            return max(1, written) if kind == "Regex" and _MATCHES_SOME.fullmatch(pattern) else 1 + written
        case "Prepend":
            return 1 + len(step["prepend"])
        case "Precompiled":
            texts = _charsmap_texts(step["precompiled_charsmap"])
            return max(1, *(len(text.decode("utf-8", "replace")) for text in texts.split(b"\0")))
        case kind:
            return _GROWTH.get(kind, 1)


def _check_growth(grown: int) -> None:
    if grown > _MOST:
        raise ValueError(f"its steps may make {grown} characters of one, or more")


def _check_around(processor: dict[str, Any] | None) -> None:
    """Raises ValueError for templates that are long or repeat a text."""
    around = 0
    for one in _leaves(processor):
        if one["type"] != "TemplateProcessing":
            continue
        pieces = [piece["SpecialToken"]["id"] for piece in one["single"] if "SpecialToken" in piece]
        if len(one["single"]) - len(pieces) > 1:
            raise ValueError("its post-processor does not keep a text in one piece")
        for name in pieces:
            special = one["special_tokens"][name]
            around += len(special["ids"]) + sum(map(len, special["tokens"])) // _LONGEST_NAME
            if around > _MOST_AROUND:
                raise ValueError(f"it puts more than {_MOST_AROUND} ids around a text")


def _check_model(model: dict[str, Any]) -> None:
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if len(model.get(name) or "") > _LONGEST_NAME:
            raise ValueError(f"its {name} is longer than {_LONGEST_NAME} characters")
    if (model.get("max_input_chars_per_word") or 0) > _LONGEST_WORD:
        raise ValueError(f"its max_input_chars_per_word is above {_LONGEST_WORD}")


def _charsmap_texts(encoded: str) -> bytes:
    """The NUL-terminated replacement texts of a Precompiled step; they follow a trie, preceded by its byte length."""
    charsmap = base64.b64decode(encoded)
    if len(charsmap) < 4 or (length := struct.unpack_from("<I", charsmap)[0]) > len(charsmap) - 4:
        raise ValueError("its precompiled_charsmap is shorter than it says")
    return charsmap[4 + length // 4 * 4 :]


def _check_unread(steps: dict[str, Any]) -> None:
    """Raises ValueError for steps that the library cannot parse safely.

    It tries to parse nested steps in several ways, and allocates a trie of any size.
    """
    level: list[Any] = [steps]
    for _ in range(_MOST_NESTED):
        for one in level:
            if isinstance(one, dict) and isinstance(charsmap := one.get("precompiled_charsmap"), str):
                _charsmap_texts(charsmap)
        held = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for values in held for one in values]
    if level:
        raise ValueError(f"its steps are nested more than {_MOST_NESTED} deep")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, except in a vocabulary: which of two equal keys is used is ambiguous."""
    found = dict(pairs)
    if len(found) < len(pairs) and not all(isinstance(value, int) for value in found.values()):
        raise ValueError("a key is there more than once")
    return found
