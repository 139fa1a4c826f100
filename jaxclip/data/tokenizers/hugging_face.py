"""Tokenizers in Hugging Face's tokenizer.json form: BPE, Unigram, WordPiece, WordLevel."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from jaxclip.data.tokenizers import cleaning, growth, normalizing
from jaxclip.data.tokenizers.layout import lay_out
from jaxclip.quiet import quiet_stderr

# Characters in hardly any vocabulary: a hieroglyph alone and in a word, and the last one for private use. A model
# without an unknown token fails on these, and would fail on some caption.
_RARE_TEXT = "\U00013000 a\U00013000 \U0010fffd"
_MAX_IDS = 1 << 24  # the largest vocabularies have a million
_MAX_BATCH = 1 << 22  # characters encoded together, after the file's steps have lengthened them: about 400 MB


class HuggingFaceTokenizer:
    """The `Tokenizer` of a tokenizer.json, with its normalization and special tokens.

    Texts are padded and truncated on the right, whatever the file's settings. The positions returned are those of the
    last token, which is the end token if the vocabulary has one.

    Attributes:
      clean: the one of `normalizing.CLEANINGS` that is applied to texts first; None for none.
    """

    def __init__(self, text: str, pad_token: str | None = None, clean: str | None = None):
        """Reads the text of a tokenizer.json.

        Args:
          text: the content of the file.
          pad_token: the padding token. Defaults to the file's, or else the token whose letters spell "pad", or else the
            end token, or else the only special token.
          clean: the one of `normalizing.CLEANINGS` to apply in addition to the file's normalization.

        Raises:
          ValueError: the file is invalid, the padding token is unknown, some texts cannot be encoded, or the file's
            steps could lengthen texts so much that they exhaust memory.
        """
        with _failures():
            self._read(text, pad_token, clean)

    def _read(self, text: str, pad_token: str | None, clean: str | None) -> None:
        self._growth = growth.check(text)
        backend = tokenizers.Tokenizer.from_str(text)
        backend.no_truncation()
        self.clean, normalizer = normalizing.split(backend.normalizer)
        # All of open_clip's cleanings repair text and collapse spaces. The file's other steps come after them.
        if clean is not None and (self.clean is None or clean not in (self.clean, "whitespace")):
            self.clean, normalizer = clean, backend.normalizer
        if self.clean is not None:
            backend.normalizer = normalizing.join(self.clean, normalizer)
        self._before, self._after = _around(backend)
        self._known = frozenset(backend.get_vocab(with_added_tokens=True).values())
        if not self._known.issuperset(self._before + self._after):
            raise ValueError("its post-processor adds ids that are not in its vocabulary")
        self.vocab_size = max(self._known, default=-1) + 1
        if self.vocab_size > _MAX_IDS:
            raise ValueError(f"it has the id {self.vocab_size - 1}, more than any real vocabulary")
        self.start_id = self._before[0] if self._before else None
        self.end_id = self._after[-1] if self._after else None
        special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.mask_id = _spelled("mask", special)
        self.pad_id = _pad_id(backend, special, self.end_id, pad_token)
        if self.pad_id not in self._known:
            raise ValueError(f"it pads with id {self.pad_id}, which is not in its vocabulary")
        # Stored in the JSON text; the padding itself is not done by the backend.
        backend.enable_padding(pad_id=self.pad_id, pad_token=backend.id_to_token(self.pad_id))
        self._json = backend.to_str()
        backend.no_padding()
        if self.clean is not None:
            growth.check(self._json)  # so that the stored text can be read again
            # Cleaning happens in Python, before the library splits off special tokens and normalizes.
            backend.normalizer = normalizer
        self._backend = backend
        try:
            backend.encode(_RARE_TEXT, add_special_tokens=False)
        except Exception as error:
            raise ValueError(f"it has no token for unknown text: {error}") from error

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer.__call__`.

        A text on which the library fails, which a regular expression in the file can cause, is treated as empty. Raises
        UserError if the special tokens do not fit into `context_length`.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        cleaned = [cleaning.encodable(cleaning.beginning(text, context_length)) for text in texts]
        if self.clean is not None:
            cleaned = list(map(normalizing.CLEANINGS[self.clean].apply, cleaned))
        ids: list[list[int]] = []
        for batch in _batches(cleaned, _MAX_BATCH // self._growth):
            ids += (text_ids[:context_length] for text_ids in self._ids(batch))
        return lay_out(ids, context_length, self.pad_id, before=self._before, after=self._after)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts; empty for a text on which the library fails."""
        try:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in Rust is not an Exception
            return [[]] if len(texts) == 1 else [ids for text in texts for ids in self._ids([text])]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length] by the file's decoder, without padding and the special tokens around the text.

        Raises KeyError for an id that is not in the vocabulary.
        """
        ids = np.asarray(tokens).tolist()
        unknown = next((i for i in ids if i not in self._known), None)
        if unknown is not None:
            raise KeyError(unknown)
        while ids[-1:] == [self.pad_id]:
            ids.pop()
        # If the end token is the padding too, it has been removed already.
        after = self._after[:-1] if self.pad_id == self.end_id else self._after
        if after and ids[-len(after) :] == after:
            ids = ids[: -len(after)]
        if ids[: len(self._before)] == self._before:
            ids = ids[len(self._before) :]
        return self._backend.decode(ids, skip_special_tokens=False)

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return self._json


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Converts any exception to a ValueError.

    For some damaged files the library panics in Rust: it prints to stderr and raises a BaseException.
    """
    with quiet_stderr():
        try:
            yield
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            known = isinstance(error, ValueError) or type(error) is Exception or not isinstance(error, Exception)
            reason = str(error) if known else "invalid structure"
    raise ValueError(reason)


def _batches(texts: list[str], max_length: int) -> Iterator[list[str]]:
    """Splits texts into batches of at most `max_length` characters, or of one longer text."""
    batch: list[str] = []
    length = 0
    for text in texts:
        if batch and length + len(text) > max_length:
            yield batch
            batch, length = [], 0
        batch.append(text)
        length += len(text)
    if batch:
        yield batch


def _around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the file's post-processor adds before and after a text, from its output for a single token."""
    if backend.post_processor is None:
        return [], []
    token = tokenizers.Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).encode("x")
    processed = backend.post_processor.process(token, None, True)
    if processed.special_tokens_mask.count(0) != 1:
        raise ValueError("its post-processor does not keep a text in one piece")
    position = processed.special_tokens_mask.index(0)
    return processed.ids[:position], processed.ids[position + 1 :]


def _spelled(word: str, special: dict[str, int]) -> int | None:
    """The id of the special token whose letters spell a word: [PAD] and <pad> spell pad."""
    return next((i for token, i in special.items() if re.sub("[^a-z]", "", token.lower()) == word), None)


def _pad_id(backend: tokenizers.Tokenizer, special: dict[str, int], end_id: int | None, pad_token: str | None) -> int:
    if pad_token is not None:
        known = backend.token_to_id(pad_token)
        if known is None:
            raise ValueError(f"the pad token {pad_token!r} is not in its vocabulary")
        return known
    padding: dict[str, Any] | None = backend.padding
    if padding is not None:
        # The token is more reliable than the id, which is 0 if the file's writer gave none.
        known = backend.token_to_id(padding["pad_token"])
        return padding["pad_id"] if known is None else known
    only = next(iter(special.values())) if len(special) == 1 else None
    for choice in (_spelled("pad", special), end_id, only):
        if choice is not None:
            return choice
    example = json.dumps({"pad_token": "</s>"})
    raise ValueError(f"its padding token is unknown; put a tokenizer_config.json such as {example} beside it")
