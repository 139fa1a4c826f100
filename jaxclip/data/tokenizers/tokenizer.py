"""The protocol of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tokenizer(Protocol):
    """A thread-safe function from strings to token ids of a fixed length.

    Attributes:
      vocab_size: the number of rows of an embedding table; every id is below it.
      start_id: the id that starts every text; None if there is no start token.
      end_id: the id that ends every text; None if there is no end token.
      pad_id: the id of padding after the end.
      mask_id: the id of a masked token; None if the vocabulary has none.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def start_id(self) -> int | None: ...

    @property
    def end_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def mask_id(self) -> int | None: ...

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of texts. Any string is valid.

        Texts longer than `context_length` are truncated; the end token is kept. Only the first 32 * context_length
        characters of a text are read, which bounds the time.

        Args:
          texts: n strings.
          context_length: tokens per row, at least 2.

        Returns:
          int32 [n, context_length]: start, the text, end, padding; and
          int32 [n]: the position in each row whose state represents the text.
        """
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length] without start, end and padding; not always the original text.

        Raises KeyError for an id that is not in the vocabulary.
        """
        ...

    def to_json(self) -> str:
        """The tokenizer as JSON text, from which `from_json` restores it."""
        ...


def generated_text(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    """The text of token ids that a model generated, which counts up to the first end token after the start.

    Args:
      tokenizer: of the model; it has an end token.
      tokens: int32 [length], the start token first.
    """
    ends = np.flatnonzero(tokens[1:] == tokenizer.end_id)
    return tokenizer.decode(tokens[: ends[0] + 2] if len(ends) else tokens)


def text_lengths(tokenizer: Tokenizer, tokens: np.ndarray) -> list[int]:
    """The numbers of tokens of texts, start and end included.

    Args:
      tokenizer: that made the tokens.
      tokens: int32 [n, context_length].
    """
    lengths = [int(np.max(np.flatnonzero(row != tokenizer.pad_id), initial=-1)) + 1 for row in tokens]
    # If the end token is the padding too (SigLIP's c4), the first of the pads is the end.
    ends_as_padded = tokenizer.end_id == tokenizer.pad_id
    return [min(length + ends_as_padded, tokens.shape[1]) for length in lengths]
