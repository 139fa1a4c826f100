"""Layout of token ids in rows of fixed length, with special tokens and padding."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from jaxclip.errors import UserError


def lay_out(
    texts: Collection[Sequence[int] | np.ndarray],
    context_length: int,
    pad_id: int,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Builds rows of `before`, the text's ids (truncated to fit), `after` and padding.

    Args:
      texts: the ids of n texts.
      context_length: the length of a row.
      pad_id: the padding id.
      before, after: the special ids around every text.

    Returns:
      int32 [n, context_length], and int32 [n], the position of the last id before the padding (0 in an empty row).

    Raises:
      UserError: the special ids do not fit into a row.
    """
    room = context_length - len(before) - len(after)
    if room < 0:
        raise UserError(
            f"context_length={context_length} is too short for the {len(before) + len(after)} special tokens that this "
            "vocabulary adds to a text; increase it"
        )
    tokens = np.full((len(texts), context_length), pad_id, np.int32)
    ends = np.empty(len(texts), np.int32)
    tokens[:, : len(before)] = before
    for row, ids in enumerate(texts):
        last = len(before) + min(len(ids), room)
        tokens[row, len(before) : last] = ids[:room]
        tokens[row, last : last + len(after)] = after
        ends[row] = max(last + len(after) - 1, 0)
    return tokens, ends
