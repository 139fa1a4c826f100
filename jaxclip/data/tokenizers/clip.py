"""CLIP's byte-level BPE tokenizer.

The ids equal those of OpenAI's `SimpleTokenizer` (openai/CLIP, clip/simple_tokenizer.py). They number, in order, 256
bytes, the same 256 bytes at the end of a word, the merges, start of text and end of text: 49,408 with OpenAI's
vocabulary.
"""

from __future__ import annotations

import array
import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from jaxclip.data.tokenizers import cleaning
from jaxclip.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

# BPE works on text, so each byte is represented by a visible character. The order is the order of ids.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF = {chr(b): b for b in _VISIBLE} | {chr(256 + i): b for i, b in enumerate(_HIDDEN)}
SYMBOLS = [*_BYTE_OF, *(character + WORD_END for character in _BYTE_OF)]

# Splits lower-case text with single spaces into words. OpenAI's pattern ignores case, which has two effects even in
# lower case: the long s matches s, and U+0345, a mark whose capital is a letter, matches nothing and is dropped.
_WORD = (
    r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^ \p{L}\p{N}\x{345}]+"
)

# Maximum number and length in characters of the cached pieces of text: about 100 MB in all.
_MAX_CACHED = 1 << 19
_MAX_CACHED_LENGTH = 32

_TRAINING_CONTEXT = 77  # captions are truncated to this context length before a vocabulary is trained


class ClipTokenizer:
    """The `Tokenizer` of CLIP's vocabularies; ids equal OpenAI's for every string.

    No token crosses a space, and captions repeat their words. So the ids of the pieces between spaces are cached, which
    is faster than splitting and merging them again.
    """

    mask_id = None

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], pad_token: str | None = None):
        """From a vocabulary and its merges.

        Args:
          vocabulary: the ids by token.
          merges: pairs of tokens, in the order in which they are merged.
          pad_token: the padding token. Defaults to id 0, as in OpenAI's code, which is also the id of "!".

        Raises:
          ValueError: these are not a byte-level BPE with word ends, or the padding token is not in the vocabulary.
        """
        ids = list(vocabulary.values())
        if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise ValueError(f"its ids are not 0 to {len(ids) - 1}, each once")
        missing = next((symbol for symbol in (*SYMBOLS, START, END) if symbol not in vocabulary), None)
        if missing is not None:
            raise ValueError(f"it has no {missing!r}")
        for left, right in merges:
            if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
                raise ValueError(f"the merge {left!r} {right!r} is not in its vocabulary")
        self.vocab_size = len(vocabulary)
        self.start_id = vocabulary[START]
        self.end_id = vocabulary[END]
        if pad_token is not None and pad_token not in vocabulary:
            raise ValueError(f"the pad token {pad_token!r} is not in its vocabulary")
        self.pad_id = 0 if pad_token is None else vocabulary[pad_token]
        self._tokens = {i: token for token, i in vocabulary.items()}
        self._backend = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges), end_of_word_suffix=WORD_END))
        self._backend.pre_tokenizer = _words()
        self._known: dict[str, bytes] = {}

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer.__call__`; the second array has the positions of the end tokens.

        A caption that contains "<|endoftext|>" has this id at an earlier position too.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        pieces = [cleaning.repaired_pieces(cleaning.beginning(text, context_length)) for text in texts]
        known, new = self._piece_ids(pieces)
        # Rows are joined as the bytes of int32 ids, so that no Python code handles single tokens.
        start, end = np.array([[self.start_id], [self.end_id]], np.int32)
        before, after = start.tobytes(), end.tobytes()
        row_bytes, max_bytes = 4 * context_length, 4 * (context_length - 2)
        rows = []
        for row in pieces:
            try:
                ids = b"".join([known[piece] for piece in row])[:max_bytes]
            except KeyError:
                ids = b"".join([new[piece] if piece in new else known[piece] for piece in row])[:max_bytes]
            rows.append(before + ids + after)
        padding = np.full(context_length, self.pad_id, np.int32).tobytes()
        tokens = np.frombuffer(bytearray().join([(row + padding)[:row_bytes] for row in rows]), np.int32)
        ends = np.fromiter(map(len, rows), np.int32, len(rows)) // 4 - 1
        return tokens.reshape(len(rows), context_length), ends

    def _piece_ids(self, pieces: Iterable[list[str]]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The ids of pieces of text, as bytes of int32, in two dicts: the cache, and the pieces missing from it.

        Threads share the cache. Entries are never removed: a full cache is replaced by a new dict, and each thread
        keeps its reference to the old one.
        """
        known = self._known
        missing = list(set(itertools.chain.from_iterable(pieces)).difference(known))
        new: dict[str, bytes] = {}
        if missing:
            encodings = self._backend.encode_batch_fast(missing, add_special_tokens=False)
            for piece, encoding in zip(missing, encodings, strict=True):
                ids = self._spell(piece) if START in piece or END in piece else encoding.ids
                new[piece] = array.array("i", ids).tobytes()  # four times as fast as NumPy for so few ids
            if len(known) > _MAX_CACHED:  # frequent words soon return to the new cache
                self._known = {}
            self._known.update((piece, ids) for piece, ids in new.items() if len(piece) <= _MAX_CACHED_LENGTH)
        return known, new

    def _spell(self, text: str) -> list[int]:
        """Ids of clean text in which words may be start or end tokens. Within a word, they are plain text."""
        ids = []
        for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text):
            if word in (START, END):
                ids.append(self.start_id if word == START else self.end_id)
            else:
                ids += [token.id for token in self._backend.model.tokenize(word)]
        return ids

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length], in lower case, with a space after every word and punctuation mark.

        A leading start token, the last end token and everything after it are removed. Raises KeyError for an id that is
        not in the vocabulary.
        """
        ids = np.asarray(tokens).tolist()
        while self.pad_id == self.end_id and ids[-2:] == [self.end_id] * 2:
            ids.pop()
        if self.end_id in ids:
            ids = ids[: len(ids) - 1 - ids[::-1].index(self.end_id)]
        if ids[:1] == [self.start_id]:
            ids = ids[1:]
        text = bytearray()
        for token in (self._tokens[i] for i in ids):
            word = token.removesuffix(WORD_END)
            text += b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in word)
            text += b" " * (word != token)
        return text.decode("utf-8", errors="replace").strip()

    def to_json(self) -> str:
        """The tokenizer as the text of a Hugging Face tokenizer.json, with its padding unless that is id 0."""
        text = self._backend.to_str()
        if self.pad_id == 0:
            return text
        padded = tokenizers.Tokenizer.from_str(text)
        padded.enable_padding(pad_id=self.pad_id, pad_token=self._tokens[self.pad_id])
        return padded.to_str()


def train(captions: Iterable[str], vocab_size: int) -> ClipTokenizer:
    """Trains a vocabulary in CLIP's layout. The result does not depend on the order of the captions.

    It has fewer than `vocab_size` ids if no pair of adjacent symbols is left that occurs twice.

    Raises:
      UserError: vocab_size is below 514, the number of bytes, start and end tokens.
    """
    if vocab_size < len(SYMBOLS) + 2:
        raise UserError(f"a tokenizer's vocab_size must be at least {len(SYMBOLS) + 2}, not {vocab_size}")
    # As special tokens, the symbols get ids in this order. Otherwise the trainer would number them in the order of
    # occurrence, which differs from run to run, and break ties between merges by these numbers.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=SYMBOLS,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    backend.pre_tokenizer = _words()
    read = (cleaning.repaired_pieces(cleaning.beginning(caption, _TRAINING_CONTEXT)) for caption in captions)
    backend.train_from_iterator((" ".join(pieces) for pieces in read), trainer)
    model = json.loads(backend.to_str())["model"]
    vocabulary = model["vocab"]
    return ClipTokenizer(
        vocabulary | {START: len(vocabulary), END: len(vocabulary) + 1},
        [(left, right) for left, right in model["merges"]],
    )


def _words() -> pre_tokenizers.PreTokenizer:
    """Splits clean text into words, and words into the characters that represent their bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
