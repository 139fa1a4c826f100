"""What a tokenizer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tokenizer(Protocol):
    """Strings to fixed-length token ids. Safe to call from several threads.

    Attributes:
      vocab_size: how many rows an embedding of its ids needs; every id is below it.
      start_id: the id that starts every text, None where texts start with their own first token.
      end_id: the id that ends every text, None where texts end with their own last token.
      pad_id: what fills the places after the end.
      mask_id: the id that stands for a token hidden from the model, None where the vocabulary has none.
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
        """Token ids of texts. No string fails.

        A text too long for `context_length` loses its last tokens, not the end token. Of a text longer than
        32 * context_length characters the rest is not read, which bounds the time.

        Args:
          texts: n strings.
          context_length: tokens of a row, at least 2.

        Returns:
          int32 [n, context_length]: start, the text, end, padding; and
          int32 [n]: the position in each row whose state stands for the whole text.
        """
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length], as far as the vocabulary keeps it, without start, end and padding.

        Raises KeyError for an id that is not in the vocabulary.
        """
        ...

    def to_json(self) -> str:
        """All there is to it, as JSON text, from which `from_json` makes the same one."""
        ...
