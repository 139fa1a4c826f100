"""Parsers of the published forms of CLIP's vocabulary. They raise ValueError with the reason for invalid content."""

from __future__ import annotations

import json
from typing import Any

from jaxclip.data.tokenizers.clip import END, START, SYMBOLS, WORD_END, ClipTokenizer

_OPENAI_MERGES = 49152 - 256 - 2  # OpenAI's file contains 262,144 merges, of which its tokenizer uses the first ones


def is_clip(content: dict[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is CLIP's: a BPE with word ends and CLIP's start and end tokens."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != WORD_END:
        return False
    return {START, END} <= model["vocab"].keys() | {token["content"] for token in content.get("added_tokens", ())}


def from_content(content: dict[str, Any], pad_token: str | None = None) -> ClipTokenizer:
    """From Hugging Face's parsed tokenizer.json. Words are split as in CLIP, whatever the file's own rule.

    The file's own padding is used only if `ClipTokenizer.to_json` wrote it, which adds no post-processor.
    """
    if pad_token is None and content.get("post_processor") is None:
        pad_token = padding(content)
    model = content["model"]
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return ClipTokenizer(model["vocab"] | added, merges, pad_token)


def padding(content: dict[str, Any]) -> str | None:
    """The padding token in a parsed tokenizer.json; None if it has none."""
    return (content.get("padding") or {}).get("pad_token")


def from_pair(vocabulary: str, merges: str, pad_token: str | None = None) -> ClipTokenizer:
    """From Hugging Face's vocab.json and merges.txt."""
    return ClipTokenizer(json.loads(vocabulary), _merges(merges.rstrip().split("\n")), pad_token)


def from_merges(text: str, pad_token: str | None = None) -> ClipTokenizer:
    """From OpenAI's list of merges, which determines the ids."""
    merges = _merges(text.rstrip().split("\n")[: 1 + _OPENAI_MERGES])
    tokens = [*SYMBOLS, *map("".join, merges), START, END]
    return ClipTokenizer({token: i for i, token in enumerate(tokens)}, merges, pad_token)


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    """The merges in a file's lines: a version line, then one merge of two symbols per line."""
    header, *lines = lines
    if "#version" not in header:
        raise ValueError("its first line does not contain '#version', and no line is '[UNK]'")
    merges = []
    for number, line in enumerate(lines, start=2):
        pair = tuple(line.split())
        if len(pair) != 2:
            raise ValueError(f"line {number} is not two symbols")
        merges.append(pair)
    if merges and not any(right.endswith(WORD_END) for _, right in merges):
        raise ValueError(f"none of its merges ends a word with {WORD_END}")
    return merges
