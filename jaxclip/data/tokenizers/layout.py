"""Token ids of any number, laid out in rows of one length."""

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
    """Rows of `before`, as many of a text's ids as fit, `after`, padding.

    Args:
      texts: the ids of n texts.
      context_length: of a row.
      pad_id: what fills the places after the last id.
      before, after: the special ids around every text.

    Returns:
      int32 [n, context_length], and int32 [n]: where the last id before the padding is, 0 in a row of nothing else.

    Raises:
      UserError: the special ids alone are longer than a row.
    """
    room = context_length - len(before) - len(after)
    if room < 0:
        raise UserError(
            f"context_length={context_length} has no room for the {len(before) + len(after)} special tokens that this "
            "vocabulary puts around a text; make it longer"
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
