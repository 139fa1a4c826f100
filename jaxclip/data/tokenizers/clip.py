"""CLIP's byte-level BPE.

The ids are those of OpenAI's `SimpleTokenizer` (openai/CLIP, clip/simple_tokenizer.py), 49,408 with its vocabulary:
256 bytes, the same 256 bytes as a word's last, one id per merge, start of text, end of text.
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

# BPE works on text, so each byte has a visible character that stands for it. The order is the order of ids.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF = {chr(b): b for b in _VISIBLE} | {chr(256 + i): b for i, b in enumerate(_HIDDEN)}
SYMBOLS = [*_BYTE_OF, *(character + WORD_END for character in _BYTE_OF)]

# What becomes a word, of text in lower case with single spaces. OpenAI's pattern ignores case, with two effects left
# in lower case: the long s counts as an s, and U+0345, a mark whose capital is a letter, is neither and so is lost.
_WORD = (
    r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^ \p{L}\p{N}\x{345}]+"
)

# How many pieces of text are remembered with their ids, and of how many characters at most: some 100 MB in all.
_MOST_KEPT = 1 << 19
_LONGEST_KEPT = 32

_TRAINING_CONTEXT = 77  # of a caption, a vocabulary is trained on what a row of this length would hold


class ClipTokenizer:
    """The Tokenizer of CLIP's vocabularies: ids equal OpenAI's for every string.

    No token reaches over a space. So the ids of what stands between two spaces are remembered, which is faster than
    looking for words and merging bytes every time: captions repeat their words.
    """

    pad_id = 0  # as OpenAI has it, which is also the id of "!"
    mask_id = None

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]):
        """Raises ValueError where these are not a byte-level BPE with word ends, saying why."""
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
        self._tokens = {i: token for token, i in vocabulary.items()}
        self._backend = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges), end_of_word_suffix=WORD_END))
        self._backend.pre_tokenizer = _words()
        self._known: dict[str, bytes] = {}

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer` has it; the second array says where the end token is.

        A caption that spells "<|endoftext|>" has that id earlier too.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        pieces = [cleaning.mended_pieces(cleaning.beginning(text, context_length)) for text in texts]
        known, found = self._remembered(pieces)
        # Rows are put together as the bytes of their int32 ids: nothing in Python touches a single token.
        start, end = np.array([[self.start_id], [self.end_id]], np.int32)
        before, after = start.tobytes(), end.tobytes()
        width, most = 4 * context_length, 4 * (context_length - 2)
        rows = []
        for row in pieces:
            try:
                ids = b"".join([known[piece] for piece in row])[:most]
            except KeyError:
                ids = b"".join([found[piece] if piece in found else known[piece] for piece in row])[:most]
            rows.append(before + ids + after)
        padding = bytes(width)  # the bytes of pad_id
        tokens = np.frombuffer(bytearray().join([(row + padding)[:width] for row in rows]), np.int32)
        ends = np.fromiter(map(len, rows), np.int32, len(rows)) // 4 - 1
        return tokens.reshape(len(rows), context_length), ends

    def _remembered(self, pieces: Iterable[list[str]]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The ids, as bytes of int32, of pieces of text: those remembered, and those of the others, in two dicts.

        Threads share the first: it only grows, until another takes its place, and a thread keeps the one it has got.
        """
        known = self._known
        missing = list(set(itertools.chain.from_iterable(pieces)).difference(known))
        found: dict[str, bytes] = {}
        if missing:
            encodings = self._backend.encode_batch_fast(missing, add_special_tokens=False)
            for piece, encoding in zip(missing, encodings, strict=True):
                ids = self._spell(piece) if START in piece or END in piece else encoding.ids
                found[piece] = array.array("i", ids).tobytes()  # four times as fast as numpy for so few
            if len(known) > _MOST_KEPT:  # words that recur are soon known again
                self._known = {}
            self._known.update((piece, ids) for piece, ids in found.items() if len(piece) <= _LONGEST_KEPT)
        return known, found

    def _spell(self, text: str) -> list[int]:
        """Ids of clean text in which a start or end token may stand as a word; anywhere else it is plain text."""
        ids = []
        for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text):
            if word in (START, END):
                ids.append(self.start_id if word == START else self.end_id)
            else:
                ids += [token.id for token in self._backend.model.tokenize(word)]
        return ids

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length]: lower case, with a space after every word and punctuation mark.

        A leading start token, the last end token and all after it are left out. Raises KeyError for an id that is
        not in the vocabulary.
        """
        ids = np.asarray(tokens).tolist()
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
        """All there is to it, as the text of a Hugging Face tokenizer.json."""
        return self._backend.to_str()


def train(captions: Iterable[str], vocab_size: int) -> ClipTokenizer:
    """A vocabulary of the captions' own, laid out as CLIP's; the same captions in any order give the same one.

    It has fewer than `vocab_size` ids where no two neighbouring symbols are left that occur together twice.

    Raises:
      UserError: vocab_size is below 514, which the bytes, the start and the end take.
    """
    if vocab_size < len(SYMBOLS) + 2:
        raise UserError(f"a tokenizer's vocab_size must be at least {len(SYMBOLS) + 2}, not {vocab_size}")
    # Given as special tokens the symbols get their ids in this order; the trainer would number them as it meets
    # them, which differs from run to run, and break ties between merges by those numbers.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=SYMBOLS,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    backend.pre_tokenizer = _words()
    read = (cleaning.mended_pieces(cleaning.beginning(caption, _TRAINING_CONTEXT)) for caption in captions)
    backend.train_from_iterator((" ".join(pieces) for pieces in read), trainer)
    model = json.loads(backend.to_str())["model"]
    vocabulary = model["vocab"]
    return ClipTokenizer(
        vocabulary | {START: len(vocabulary), END: len(vocabulary) + 1},
        [(left, right) for left, right in model["merges"]],
    )


def _words() -> pre_tokenizers.PreTokenizer:
    """Clean text to words, and words to the characters that stand for their bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
