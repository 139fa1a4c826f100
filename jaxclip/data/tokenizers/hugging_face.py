"""Any vocabulary that comes as a Hugging Face tokenizer.json: BPE, Unigram, WordPiece, WordLevel."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from jaxclip.data.tokenizers import cleaning, normalising
from jaxclip.data.tokenizers.layout import lay_out
from jaxclip.quiet import quiet_stderr

# Letters that hardly any vocabulary has: a hieroglyph alone and in a word, and the last one for private use. A model
# that has no token for what it does not know fails on these, and would on some caption.
_UNHEARD_OF = "\U00013000 a\U00013000 \U0010fffd"
_MOST_IDS = 1 << 24  # the largest vocabularies have a million
_AT_ONCE = 1 << 22  # characters that are encoded together, which takes some 400 MB


class HuggingFaceTokenizer:
    """The Tokenizer that a tokenizer.json describes, with its own normalisation and its own special tokens.

    Its texts are padded and cut on the right, whatever the file says of that; the positions returned are those of the
    last token, which is the last special one where the vocabulary ends texts with one.

    Attributes:
      clean: which of `normalising.CLEANINGS` texts go through before; None where nothing is done to them.
    """

    def __init__(self, text: str, pad_token: str | None = None, clean: str | None = None):
        """Reads the text of a tokenizer.json.

        Args:
          text: what is in the file.
          pad_token: what to pad with, whatever the file says of that. By default what the file says, or else the token
            whose letters spell "pad", or else the one that ends every text, or else the only special one.
          clean: of `normalising.CLEANINGS`, what is done to texts besides what the file says.

        Raises:
          ValueError: it is no such file, or nothing says what to pad with, or some texts have no ids.
        """
        with _failures():
            self._read(text, pad_token, clean)

    def _read(self, text: str, pad_token: str | None, clean: str | None) -> None:
        backend = tokenizers.Tokenizer.from_str(text)
        backend.no_truncation()
        self.clean, normalizer = normalising.split(backend.normalizer)
        # Mended and with single spaces they are by all of open_clip's ways; what else the file says is done after.
        if clean is not None and (self.clean is None or clean not in (self.clean, "whitespace")):
            self.clean, normalizer = clean, backend.normalizer
        if self.clean is not None:
            backend.normalizer = normalising.join(self.clean, normalizer)
        self._before, self._after = _around(backend)
        self._known = frozenset(backend.get_vocab(with_added_tokens=True).values())
        if not self._known.issuperset(self._before + self._after):
            raise ValueError("its post-processor adds ids that are not in its vocabulary")
        self.vocab_size = max(self._known, default=-1) + 1
        if self.vocab_size > _MOST_IDS:
            raise ValueError(f"it has the id {self.vocab_size - 1}, and no vocabulary has so many tokens")
        self.start_id = self._before[0] if self._before else None
        self.end_id = self._after[-1] if self._after else None
        special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.mask_id = _spelled("mask", special)
        self.pad_id = _pad_id(backend, special, self.end_id, pad_token)
        if self.pad_id not in self._known:
            raise ValueError(f"it pads with id {self.pad_id}, which is not in its vocabulary")
        # The padding is stored with the rest, but it is not the backend that pads.
        backend.enable_padding(pad_id=self.pad_id, pad_token=backend.id_to_token(self.pad_id))
        self._json = backend.to_str()
        backend.no_padding()
        if self.clean is not None:
            # Before the library looks for special tokens in a text, as it does before it normalises.
            backend.normalizer = normalizer
        self._backend = backend
        try:
            backend.encode(_UNHEARD_OF, add_special_tokens=False)
        except Exception as error:
            raise ValueError(f"it has no token for what it does not know: {error}") from error

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer` has it. A text that the library fails on, as an expression of the file's own can make it, is
        taken for an empty one.

        Raises UserError where context_length has no room for the special tokens.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        read = [cleaning.encodable(cleaning.beginning(text, context_length)) for text in texts]
        if self.clean is not None:
            read = list(map(normalising.CLEANINGS[self.clean].apply, read))
        ids: list[list[int]] = []
        for some in _portions(read, _AT_ONCE):
            ids += (found[:context_length] for found in self._ids(some))
        return lay_out(ids, context_length, self.pad_id, self._before, self._after)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts; none of one that the library fails on."""
        try:
            return [found.ids for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in Rust is no Exception
            return [[]] if len(texts) == 1 else [ids for text in texts for ids in self._ids([text])]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length] as the file's decoder spells it, without padding and what is put around it.

        Raises KeyError for an id that is not in the vocabulary.
        """
        ids = np.asarray(tokens).tolist()
        unknown = next((i for i in ids if i not in self._known), None)
        if unknown is not None:
            raise KeyError(unknown)
        while ids[-1:] == [self.pad_id]:
            ids.pop()
        # Where the end token pads, it is gone by now.
        after = self._after[:-1] if self.pad_id == self.end_id else self._after
        if after and ids[-len(after) :] == after:
            ids = ids[: -len(after)]
        if ids[: len(self._before)] == self._before:
            ids = ids[len(self._before) :]
        return self._backend.decode(ids, skip_special_tokens=False)

    def to_json(self) -> str:
        """All there is to it, as the text of a tokenizer.json."""
        return self._json


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Makes a ValueError of whatever fails inside.

    Where a damaged file makes the library panic in Rust, it says so on stderr, and what it raises is no Exception.
    """
    with quiet_stderr():
        try:
            yield
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            known = isinstance(error, ValueError) or type(error) is Exception or not isinstance(error, Exception)
            reason = str(error) if known else "not of its form"
    raise ValueError(reason)


def _portions(texts: list[str], most: int) -> Iterator[list[str]]:
    """Texts in order, together up to so many characters, or one longer than that."""
    some: list[str] = []
    length = 0
    for text in texts:
        if some and length + len(text) > most:
            yield some
            some, length = [], 0
        some.append(text)
        length += len(text)
    if some:
        yield some


def _around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the file's post-processor puts before and after a text: it is shown a text of one token."""
    if backend.post_processor is None:
        return [], []
    token = tokenizers.Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).encode("x")
    shown = backend.post_processor.process(token, None, True)
    if shown.special_tokens_mask.count(0) != 1:
        raise ValueError("its post-processor does not keep a text in one piece")
    place = shown.special_tokens_mask.index(0)
    return shown.ids[:place], shown.ids[place + 1 :]


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
        # The token says more than the number, which is 0 where whoever wrote the file gave none.
        known = backend.token_to_id(padding["pad_token"])
        return padding["pad_id"] if known is None else known
    only = next(iter(special.values())) if len(special) == 1 else None
    for choice in (_spelled("pad", special), end_id, only):
        if choice is not None:
            return choice
    example = json.dumps({"pad_token": "</s>"})
    raise ValueError(f"nothing says what to pad with: put a tokenizer_config.json such as {example} beside it")
